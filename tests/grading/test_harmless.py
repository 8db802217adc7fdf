"""Nothing that a student writes acts on an instructor's page, or in a spreadsheet."""

import copy
import csv
import html
import json
import re
import sqlite3
from contextlib import closing
from html.parser import HTMLParser

import pytest
from nbconvert.filters import markdown2html

import vectors
from browser import browser_at, lab_in
from test_formgrader import DOT, LABEL, NOTEBOOK, Course, learnt_course, nbgrader, tito_grade
from tinytorch.tito.instructor.grading.harmless import ATTRIBUTES, TAGS, _is_picture, harmless, plain_text

pytestmark = pytest.mark.grading

ADDED = {"rel", "target"}  # to links, by the sanitiser
VECTORS = vectors.cells()
TEXTS = [cell for cell in VECTORS if cell["cell_type"] != "code"]


class Page(HTMLParser):
    """What a page holds that may not be there."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.wrong: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in TAGS:
            self.wrong.append(f"<{tag}>")
        for name, value in attrs:
            if name not in ATTRIBUTES.get(tag, set()) | (ADDED if tag == "a" else set()):
                self.wrong.append(f"{tag} {name}={value}")
            elif name == "href" and not re.match(r"(https?|mailto):", value):
                self.wrong.append(f"href={value}")
            elif name == "src" and not re.fullmatch(r"data:image/(png|jpeg|gif|webp);base64,[\w+/=]+", value):
                self.wrong.append(f"src={value}")

    def handle_decl(self, decl):
        self.wrong.append(decl)

    unknown_decl = handle_pi = handle_comment = handle_decl

    def handle_data(self, data):
        self.text += data


def shown(source: str, attachments: dict | None = None, cell_type: str = "markdown") -> str:
    """What nbgrader's pages make of the cell that is stored."""
    cell = {"cell_type": cell_type, "metadata": {}, "source": source} | (
        {"attachments": attachments} if attachments else {}
    )
    stored = harmless(cell)
    assert stored["cell_type"] == "markdown"
    for forms in stored.get("attachments", {}).values():
        assert forms and all(_is_picture(kind, data) for kind, data in forms.items())
    return markdown2html(stored["source"])


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_each_vector_is_only_text(number):
    cell = copy.deepcopy(TEXTS[number])
    page = Page(shown(cell["source"], cell.get("attachments"), cell["cell_type"]))
    assert not page.wrong, cell["source"]
    again = Page(shown(harmless(cell)["source"]))
    assert not again.wrong, "what is stored comes alive when it is read once more"


def test_there_are_vectors_of_all_kinds():
    assert len(TEXTS) >= 90
    sources = [cell["source"] for cell in TEXTS if "attachment:" not in cell["source"]]
    alive = [source for source in sources if Page(markdown2html(source)).wrong]
    assert len(alive) > 60, "most of them are something else without the sanitiser"


@pytest.mark.parametrize(
    ("source", "tags", "text"),
    [
        ("# A *title*", ["h1", "em"], "A title"),
        ("a **b** `c < d` ~~e~~", ["p", "strong", "code", "del"], "a b c < d e"),
        ("- 1\n- 2\n\n3. x", ["ul", "li", "li", "ol", "li"], "1"),
        (
            "| a | b |\n|---|---|\n| 1 | 2 |",
            ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"],
            "a",
        ),
        ("$a_1 < \\frac{b_2}{c_3}$ and $$x^*y^*$$", ["p"], "$a_1 < \\frac{b_2}{c_3}$ and $$x^*y^*$$"),
        ("[the paper](https://arxiv.org/abs/1706.03762)", ["p", "a"], "the paper"),
        ("H<sub>2</sub>O, 5 < 6 & 7 > 6", ["p", "sub"], "H2O, 5 < 6 & 7 > 6"),
        ("```\nfor x in y:\n\n    pass\n```", ["pre", "code"], "for x in y:\n\n    pass"),
        ("> quoted\n>\n> twice", ["blockquote", "p", "p"], "quoted"),
        (
            "*text* that_is_like `*markdown*` \\[x\\](y)",
            ["p", "em", "code"],
            "text that_is_like *markdown* [x](y)",
        ),
        ("Größe, 尺寸, 🙂", ["p"], "Größe, 尺寸, 🙂"),
    ],
)
def test_honest_prose_looks_as_it_did(source, tags, text):
    page = Page(shown(source))
    assert not page.wrong
    assert page.tags == ["div", *tags]
    assert text in page.text


def test_a_pasted_picture_stays():
    page = html.unescape(shown("See:\n\n![scan.png](attachment:scan.png)", {"scan.png": {"image/png": DOT}}))
    assert f'src="data:image/png;base64,{DOT}"' in page
    assert Page(shown("![scan.png](attachment:scan.png)")).text.strip() == "[picture scan.png: not here]"


@pytest.mark.parametrize(
    ("name", "written"), [("größe.png", "größe.png"), ("scan 1.png", "scan%201.png"), ("a&b.png", "a&b.png")]
)
def test_a_picture_of_any_name_is_found(name, written):
    page = shown(f"![x](attachment:{written})", {name: {"image/png": DOT}})
    assert DOT in html.unescape(page)


def test_a_long_or_a_deep_text_ends():
    for source in ("[" * 49_000, ">" * 49_000, "*a " * 15_000, "x" * 200_000, "<b>" * 16_000, "![" * 20_000):
        assert not Page(shown(source)).wrong


@pytest.mark.parametrize(
    "value", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r\n=1", 'a";=1', "a;\t@x"]
)
def test_no_formula_for_a_spreadsheet(value):
    text = plain_text(value)
    assert not re.search(r"""(^|[;,\t|"])\s*[=+@-]""", text) and "\n" not in text
    assert re.sub("'", "", text) == " ".join(value.split())


# ------------------------------------------------------------------------------------------ in a real browser

# what only a page's own parts may hold, looked for in what a student wrote
LIVE = """
const TAGS = /^(SCRIPT|IFRAME|OBJECT|EMBED|FORM|INPUT|META|LINK|BASE|STYLE|SVG|MATH|TEMPLATE)$/i;
const ADDRESS = /^\\s*(javascript|vbscript|data:(?!image.(png|jpeg|gif|webp);))/i;
const wrong = [];
for (const root of document.querySelectorAll(arguments[0]))
    for (const one of root.querySelectorAll('*')) {
        if (TAGS.test(one.tagName) && !one.closest('mjx-container'))  // MathJax makes MathML of a formula
            wrong.push(one.outerHTML.slice(0, 200));
        for (const {name, value} of one.attributes)
            if (/^on/i.test(name) || ADDRESS.test(value))
                wrong.push(name + '=' + value.slice(0, 200));
    }
return wrong;
"""
NAMES = "[...document.documentElement.attributes].map(a => a.name)"
RAN = f"return {NAMES}.filter(name => name.startsWith('data-ran'))"


def what_lives(browser, css: str) -> tuple[list, list]:
    return browser.driver.execute_script(RAN), browser.driver.execute_script(LIVE, css)


def submission_of(folder, student: str) -> str:
    with closing(sqlite3.connect(folder / "gradebook.db")) as book:
        question = (
            "SELECT submitted_notebook.id FROM submitted_notebook JOIN submitted_assignment ON "
            "submitted_assignment.id = submitted_notebook.assignment_id WHERE student_id = ?"
        )
        return book.execute(question, (student,)).fetchone()[0]


@pytest.mark.usefixtures("a_browser_is_here")
def test_the_vectors_do_nothing_on_any_page(tmp_path):
    course = Course(learnt_course(tmp_path / "course", "04").folder)
    everything = "\n\n".join(cell["source"] for cell in TEXTS[: len(vectors.MARKDOWN)])
    notebook = course.solved(question_padding="They count." + everything)
    notebook["cells"] += copy.deepcopy(VECTORS)
    notebook["metadata"]["title"] = "</title><script>document.documentElement.dataset.ran=1</script>"
    course.submit("mallory", notebook)
    row = tito_grade(course.folder)["mallory"]
    assert float(row["score"]) == 90
    stored = course.folder / "autograded" / "mallory" / LABEL / NOTEBOOK
    home = tmp_path / "lab"
    home.mkdir()
    with lab_in(course.folder, home) as lab, browser_at(tmp_path / "browser") as browser:
        page = f"{lab.url}/formgrader/submissions/{submission_of(course.folder, 'mallory')}"
        browser.driver.get(f"{page}?token={lab.token}")
        browser.find("#notebook", "They count.")
        assert what_lives(browser, "#notebook .text_cell_render, #notebook .output") == ([], [])
        assert browser.find("#question-padding").get_attribute("value") == ""

        nbgrader(course.folder, tmp_path / "home", "generate_feedback", LABEL)
        for file in (f"{LABEL}/losses.html", f"{LABEL}.html"):
            browser.driver.get((course.folder / "feedback" / "mallory" / file).as_uri())
            browser.find("body", "question-padding")
            assert what_lives(browser, ".text_cell_render, .output, table") == ([], [])

        path = stored.relative_to(course.folder)
        browser.driver.get(f"{lab.url}/lab/workspaces/one/tree/{path}?token={lab.token}")
        browser.find(".jp-RenderedMarkdown", "They count.")
        assert what_lives(browser, ".jp-RenderedMarkdown, .jp-OutputArea") == ([], [])

        # the same as it was handed in: this test sees what the page does with it
        shown = json.loads(stored.read_text(encoding="utf-8"))
        shown["cells"] += as_handed_in()
        stored.write_text(json.dumps(shown), encoding="utf-8")
        browser.driver.get(page)
        browser.until(lambda: len(browser.driver.execute_script(RAN)) > 20, "the vectors do nothing anywhere")


def as_handed_in() -> list[dict]:
    """The vectors without the pictures that are not there, at which formgrader stops with an error."""
    texts = [cell["source"] for cell in VECTORS if cell["cell_type"] == "markdown"]
    texts = [text for text in texts if "attachment:" not in text and "<plaintext>" not in text]
    return [
        {"cell_type": "markdown", "id": f"raw-{n}", "metadata": {}, "source": text}
        for n, text in enumerate(texts)
    ]


def test_grades_hold_no_formula(tmp_path):
    from tinytorch.tito.instructor.grading.results import REJECTED, Result, write_grades

    reason = '=HYPERLINK("https://example.org","see")'
    write_grades(
        tmp_path / "grades.csv", LABEL, [Result("=cmd|' /C calc'!A0", REJECTED, reason, ["@x", "-1"])]
    )
    write_grades(
        tmp_path / "grades.csv",
        LABEL,
        [Result("=cmd|' /C calc'!A0", REJECTED, reason)],
        {"=cmd|' /C calc'!A0"},
    )
    with (tmp_path / "grades.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert not [value for value in row.values() if value[:1] in ("=", "+", "-", "@")]
