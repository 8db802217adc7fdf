"""Ways in which text becomes a program on the page that shows it: each tries to note that it has run."""

import base64

RUN = "top.document.documentElement.setAttribute('data-ran-N0','')"
SCRIPT = f"<script>{RUN}</script>"
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" onload="{RUN}"><script>{RUN}</script></svg>'

# N0 is the vector's number, B64 the SVG above in base64
MARKDOWN = [
    # scripts, whole and broken
    SCRIPT,
    f"text before\n\n{SCRIPT}\n\ntext after",
    f"inline {SCRIPT} in a line",
    f"<SCRIPT>{RUN}</SCRIPT >",
    f"<script\n>{RUN}</script\t\n bar>",
    f"<script>{RUN}",
    f"<<script>{RUN}//<</script>",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<script/x>{RUN}</script>",
    f"<div>\n\n{SCRIPT}\n</div>",
    f"> - 1. {SCRIPT}",
    f"| a |\n|---|\n| {SCRIPT} |",
    f'<!--><img src=x onerror="{RUN}">-->',
    f'<![CDATA[<img src=x onerror="{RUN}">]]>',
    f'<?php <img src=x onerror="{RUN}"> ?>',
    f'<noscript><p title="</noscript><img src=x onerror={RUN}>"></noscript>',
    f'<textarea><p title="</textarea><img src=x onerror={RUN}>">',
    f'<title><p title="</title><img src=x onerror={RUN}>">',
    f'<xmp><p title="</xmp><img src=x onerror={RUN}>">',
    f"</div></div></div></div>{SCRIPT}",
    f"<plaintext>{SCRIPT}",
    # handlers
    f'<img src=x onerror="{RUN}">',
    f"<img src=x onerror={RUN}>",
    f'<IMG SRC=x OnErRoR="{RUN}">',
    f"<img/src=x/onerror={RUN}>",
    f'<img src="x` `" onerror="{RUN}"',
    f'<img src=x onerror\n=\n"{RUN}">',
    f'<body onload="{RUN}">',
    f'<details open ontoggle="{RUN}">x</details>',
    f'<input autofocus onfocus="{RUN}">',
    f'<video><source onerror="{RUN}"></video>',
    f'<audio src=x onerror="{RUN}"></audio>',
    f'<marquee onstart="{RUN}">x</marquee>',
    f'<div style="animation: a 1s" onanimationstart="{RUN}"><style>@keyframes a {{}}</style>x</div>',
    f'<a href="https://example.org" onmouseover="{RUN}">x</a>',
    f'**bold <img src=x onerror="{RUN}">**',
    f'[![a](x" onerror="{RUN})](https://example.org)',
    f'![a](x "b\' onerror={RUN}")',
    f'![" onerror="{RUN}](x)',
    # links
    f"[x](javascript:{RUN})",
    f"[x](JaVaScRiPt:{RUN})",
    f"[x](<java\tscript:{RUN}>)",
    f"[x](&#106;avascript:{RUN})",
    f"[x](javascript&colon;{RUN})",
    f"[x](\x01javascript:{RUN})",
    f"[x][y]\n\n[y]: javascript:{RUN}",
    f"<javascript:{RUN}>",
    f'<a href="javascript:{RUN}">x</a>',
    f'<a href=" &#14;  javascript:{RUN}">x</a>',
    f'<a href="vbscript:{RUN}">x</a>',
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    f'<a href="data:text/html,{SCRIPT}">x</a>',
    f'<form action="javascript:{RUN}"><button>x</button></form>',
    f'<form><button formaction="javascript:{RUN}">x</button></form>',
    # frames and pages
    f'<iframe srcdoc="{SCRIPT}"></iframe>',
    f'<iframe src="javascript:{RUN}"></iframe>',
    f'<object data="javascript:{RUN}"></object>',
    '<object data="data:image/svg+xml;base64,{b64}"></object>',
    '<embed src="data:image/svg+xml;base64,{b64}">',
    f'<frameset onload="{RUN}"></frameset>',
    f'<meta http-equiv="refresh" content="0;url=javascript:{RUN}">',
    f'<base href="javascript:{RUN}//">',
    f'<link rel="stylesheet" href="data:text/css,*%7Bcolor:red%7D" onload="{RUN}">',
    # SVG, MathML, CSS, templates
    f'<svg onload="{RUN}">',
    f"<svg><script>{RUN}</script></svg>",
    f'<svg><animate onbegin="{RUN}" attributeName=x dur=1s></svg>',
    f'<svg><a xlink:href="javascript:{RUN}"><text x="20" y="20">x</text></a></svg>',
    f'<svg></p><style><a id="</style><img src=1 onerror={RUN}>">',
    f'<svg><foreignObject><img src=x onerror="{RUN}"></foreignObject></svg>',
    f'<math><mtext><table><mglyph><style><!--</style><img title="--><img src=x onerror={RUN}>">',
    f'<math href="javascript:{RUN}">x</math>',
    f'<math><annotation-xml encoding="text/html"><img src=x onerror="{RUN}"></annotation-xml></math>',
    "<style>body { display: none !important }</style>",
    '<div style="position:fixed;top:0;left:0;width:100%;height:100%;z-index:9999;background:white">x</div>',
    f'<template><img src=x onerror="{RUN}"></template>',
    f'<custom-element><slot onslotchange="{RUN}"></slot></custom-element>',
    # fields of the page itself
    '<input id="test-mse" value="10"><input id="question-padding" value="5">',
    '<p id="notebook"></p><a name="MathJax"></a><form name="document"></form>',
    # math, code, diagrams
    f"$\\href{{javascript:{RUN}}}{{x}}$",
    "$$\\require{{html}}\\style{{background:url(x)}}{{x}}$$",
    f'$</script><img src=x onerror="{RUN}">$',
    f'\\begin{{x}}<img src=x onerror="{RUN}">\\end{{x}}',
    f'```mermaid\ngraph TD; A["<img src=x onerror={RUN}>"]\n```',
    f'```html\n</code></pre><img src=x onerror="{RUN}">\n```',
    f'`</code><img src=x onerror="{RUN}">`',
    f'```"><img src=x onerror={RUN}>\nx\n```',
    f"    </code></pre>{SCRIPT}",
    # entities, escapes, and what becomes live when it is read twice
    f"&lt;script&gt;{RUN}&lt;/script&gt;",
    f"&amp;lt;script&amp;gt;{RUN}&amp;lt;/script&amp;gt;",
    f"\\<script>{RUN}\\</script>",
    f"`[x](javascript:{RUN})` &#91;x&#93;&#40;javascript:{RUN}&#41;",
    f'<p title="&quot;&gt;&lt;img src=x onerror={RUN}&gt;">x</p>',
    f"<b>a\n\n&lt;img src=x onerror={RUN}&gt;\n\n</b>",
    # pictures
    "![a](data:image/svg+xml;base64,{b64})",
    "![a](https://example.org/who-looks.png)",
    "![a](/formgrader/api/assignments)",
    "![a](attachment:script.svg)",
    "![a](attachment:breaks-out.png)",
    "![a](attachment:nowhere.png)",
]
MIMES = [
    "text/html",
    "text/markdown",
    "text/latex",
    "image/svg+xml",
    "application/javascript",
    "application/vnd.jupyter.widget-view+json",
    "application/json",
    "application/pdf",
    "text/vnd.mermaid",
]


def attachments(number: int) -> dict:
    run = numbered(RUN, number)
    return {
        "script.svg": {"image/svg+xml": svg(number)},
        "breaks-out.png": {"image/png": f'AAAA" onerror="{run}', f'image/png" onerror="{run}': "AAAA"},
    }


def numbered(text: str, number: int) -> str:
    return text.replace("N0", str(number)).replace("B64", svg(number) if "B64" in text else "")


def svg(number: int) -> str:
    return base64.b64encode(numbered(SVG, number).encode()).decode()


def cells() -> list[dict]:
    """A cell for each vector; each number stands in what it would run."""
    made = []
    for text in MARKDOWN:
        n = len(made)
        source = numbered(text, n)
        made.append(
            {"cell_type": "markdown", "metadata": {}, "source": source, "attachments": attachments(n)}
        )
    n = len(made)
    for mime in ("text/html", "text/markdown", "image/svg+xml"):
        source, n = numbered(SCRIPT, n), n + 1
        metadata = {
            "raw_mimetype": mime,
            "format": mime,
            "tags": [f'"><img src=x onerror="{numbered(RUN, n)}">'],
        }
        made.append({"cell_type": "raw", "metadata": metadata, "source": source})
    for mime in MIMES:
        n = len(made)
        html = f'{numbered(SCRIPT, n)}<img src=x onerror="{numbered(RUN, n)}">'
        data = (
            numbered(RUN, n)
            if mime == "application/javascript"
            else numbered(SVG, n)
            if "svg" in mime
            else html
        )
        shown = {"output_type": "display_data", "metadata": {}, "data": {mime: data}}
        made.append(
            {"cell_type": "code", "metadata": {}, "execution_count": 1, "source": "pass", "outputs": [shown]}
        )
    printed = f"print({numbered(SCRIPT, len(made))!r})"
    made.append(
        {"cell_type": "code", "metadata": {}, "execution_count": None, "source": printed, "outputs": []}
    )
    return [cell | {"id": f"vector-{n}"} for n, cell in enumerate(made)]
