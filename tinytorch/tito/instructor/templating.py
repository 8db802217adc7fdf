"""The texts that are written from a template: pages, read-me files, pyproject.toml."""

import json
import re
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def render(name: str, **values: Any) -> str:
    """The template `templates/name` filled in; in an HTML page every value is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": with_code, "toml": json.dumps}
    return environment.get_template(name).render(values)


def with_code(text: str) -> Any:
    """As HTML, with `code` in backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(text))))
