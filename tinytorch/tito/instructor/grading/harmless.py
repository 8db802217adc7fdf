"""What students write, made harmless before it stands on somebody else's page or in a spreadsheet."""

import binascii
import html
import re
from base64 import b64decode
from html.parser import HTMLParser
from urllib.parse import unquote

# nbgrader's and Jupyter's pages show the HTML in a Markdown cell as it is, and run it as whoever looks.
# A changed cell is therefore stored as HTML that holds no more than is named here.
TAGS = set(
    "a b blockquote br code dd del div dl dt em h1 h2 h3 h4 h5 h6 hr i img kbd li ol p pre s span strong sub "
    "sup table tbody td th thead tr u ul".split()
)
ATTRIBUTES: dict[str, set[str]] = {
    "*": set(),
    "a": {"href"},
    "img": {"src", "alt"},
    "ol": {"start"},
    "td": {"align"},
    "th": {"align"},
}
DROPPED = {"script", "style"}  # with all that they hold
LINK = re.compile(r"(https?://|mailto:)[^\s]+", re.I)
PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
ATTACHED = "attachment:"
RENDERED = 50_000  # characters; a longer text is shown as it was typed
# TeX that leads to links, styles or other pieces of MathJax
TEX = re.compile(r"\\(?=(href|require|class|cssId|style|unicode|html\w*|Html\w*|data|url|mmlToken)\b)")
FORMULA = re.compile(r"""(^|[;\t|"]\s*)(?=[=+@-])""")


def harmless(cell: dict) -> dict:
    """A Markdown or raw cell of a student's -> a Markdown cell that looks the same and does nothing."""
    attached = _pictures(cell.get("attachments", {}))
    if cell["cell_type"] == "markdown" and len(cell["source"]) <= RENDERED:
        source = _literal(_clean(_rendered(cell["source"])), attached)
    else:
        source = _literal(f"<pre>{html.escape(cell['source'])}</pre>", {})
    plain = {key: value for key, value in cell.items() if key != "attachments"}
    plain |= {"cell_type": "markdown", "source": f"<div>{source}</div>"}
    return plain | ({"attachments": attached} if attached else {})


def plain_text(value: str) -> str:
    """For a cell of a table: one line that no spreadsheet takes for a formula."""
    return FORMULA.sub(r"\1'", " ".join(value.split())[:500])


def _rendered(text: str) -> str:
    """Markdown -> HTML by the rules of nbconvert, which nbgrader's pages are made with."""
    from mistune import HTMLRenderer
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        image = HTMLRenderer.image  # the other one looks for attachments, and fails without them

    try:
        return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render(text)
    except RecursionError:
        return f"<pre>{html.escape(text)}</pre>"


def _clean(page: str) -> str:
    import nh3

    def attribute(tag: str, name: str, value: str) -> str | None:
        if name not in ("href", "src") or LINK.fullmatch(value):
            return value
        return value if name == "src" and value.startswith((ATTACHED, "data:")) else None

    return nh3.clean(
        page,
        tags=TAGS,
        clean_content_tags=DROPPED,
        attributes=ATTRIBUTES,
        attribute_filter=attribute,
        url_schemes={"http", "https", "mailto", "attachment", "data"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def _pictures(attachments: dict) -> dict[str, dict[str, str]]:
    """The attachments that are pictures of a kind that cannot hold a script."""
    found = {}
    for name, forms in attachments.items():
        given = forms.items() if isinstance(forms, dict) else ()
        plain = {kind: "".join(str(data).split()) for kind, data in given}
        good = {kind: data for kind, data in plain.items() if _is_picture(kind, data)}
        if good:
            found[name] = good
    return found


def _is_picture(kind: str, data: str) -> bool:
    try:
        return kind in PICTURES and bool(b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        return False


def _literal(page: str, attached: dict[str, dict[str, str]]) -> str:
    """Clean HTML whose text no reader of Markdown takes for anything but text."""
    writer = _Literal(attached)
    writer.feed(page)
    writer.close()
    return "".join(writer.parts)


class _Literal(HTMLParser):
    def __init__(self, attached: dict[str, dict[str, str]]):
        super().__init__(convert_charrefs=True)
        self.attached = attached
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "img":
            values = self.picture(values)
            if "src" not in values:
                return
        said = "".join(f' {name}="{_as_references(value)}"' for name, value in values.items())
        self.parts.append(f"<{tag}{said}>")

    def handle_endtag(self, tag: str) -> None:
        self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.parts.append(_as_references(TEX.sub(r"\\ ", data)))

    def picture(self, values: dict[str, str]) -> dict[str, str]:
        """Its attributes; one that would be fetched from elsewhere, or is none, becomes a word about it."""
        source = values.pop("src", "")
        if source.startswith(ATTACHED):  # which the rendering has quoted
            forms = self.attached.get(unquote(source.removeprefix(ATTACHED)), {})
            kind, data = next(iter(forms.items()), ("", ""))
        else:
            kind, _, data = source.removeprefix("data:").partition(";base64,")
            data = data if _is_picture(kind, data) else ""
        if data:
            return {"src": f"data:{kind};base64,{data}"} | values
        where = source if LINK.fullmatch(source) else "not here"
        self.handle_data(f"[picture {values.get('alt', '')}: {where}]")
        return {}


def _as_references(text: str) -> str:
    """Every character but letters, digits and single spaces as a character reference."""
    return re.sub(r"[^\w ]|_| (?= )|\A | \Z", lambda m: f"&#{ord(m[0])};", text)
