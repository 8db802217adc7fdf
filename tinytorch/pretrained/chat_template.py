"""What a model's chat template writes: rendered by jinja in its sandbox, and compared with ChatML."""

import json
from os.path import commonprefix

from tinytorch.pretrained import need

START, END = "<|im_start|>", "<|im_end|>"
# Texts that show what a template does besides: cut off blanks, or take out what a model thought.
SYSTEM, QUESTION, THOUGHT = (
    " a system \n",
    "\n a question{{ 1 }} ",
    "<think>\na thought\n</think>\n\n an answer ",
)
PROBE = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": THOUGHT},
    {"role": "user", "content": " and? "},
]
LONGEST = 100_000  # characters of a template that is tried


def chatml(messages: list[dict], answer: bool) -> str:
    """The text of a conversation as this course writes it."""
    text = "".join(f"{START}{m['role']}\n{m['content']}{END}\n" for m in messages)
    return text + f"{START}assistant\n" if answer else text


def render(template: str, messages: list[dict], answer: bool, tokens: dict[str, str]) -> str:
    """The same as the template writes it. tokens: the names of bos and eos. ValueError if it cannot."""
    jinja, sandbox = need("jinja2"), need("jinja2.sandbox")

    def refuse(message: str):
        raise jinja.TemplateError(message)

    world = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    world.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    world.globals.update(raise_exception=refuse, strftime_now=lambda form: "")
    try:
        return world.from_string(template).render(messages=messages, add_generation_prompt=answer, **tokens)
    except Exception as error:  # a template is a program of its own, and may fail in any way
        raise ValueError(f"the chat template cannot be read: {error}") from error


def default_system(template: str, tokens: dict[str, str]) -> str:
    """-> the system message that a ChatML template puts before a conversation without one, or "".

    Raises ValueError with the first difference if the template writes anything but ChatML, and
    ModuleNotFoundError without the [llm] extra.
    """
    if len(template) > LONGEST:
        raise ValueError(f"the chat template has {len(template):,} characters, at most {LONGEST:,} are tried")
    system = ""
    for messages in (PROBE[:2], PROBE, PROBE[1:]):
        for answer in (False, True):
            written, wanted = render(template, messages, answer, tokens), chatml(messages, answer)
            if messages[0]["role"] != "system":
                before, opening = written.removesuffix(wanted), f"{START}system\n"
                system = before.removeprefix(opening).removesuffix(f"{END}\n")
                if system:
                    wanted = f"{opening}{system}{END}\n{wanted}"
            if written != wanted:
                at = max(0, len(commonprefix([written, wanted])) - 5)
                raise ValueError(
                    "this model is not made for ChatML: its chat template writes "
                    f"{written[at : at + 20]!r} where ChatML has {wanted[at : at + 20]!r}"
                )
    return system
