"""Measure SmolLM2-135M-Instruct on a sliding window: 10,000 tokens written, and a long text read.

Writing: ms per token and bytes when the window has just filled and at the end; the sinks are counted as if
they stood right before the window. Reading: the perplexity of the course's own prose, block by block, with
the full cache, with a window without sinks, and with sinks under both conventions of positions (which differ
in the sinks only). window.json is written, unless a size or --output says otherwise.
"""

import json
import sys
from pathlib import Path

import click
import jupytext
from rich.console import Console
from rich.table import Table

from plan import FOLDER, ROOT, Worker, WorkerFailed
from run import processors, write_atomically
from tinytorch.pretrained.gguf_file import GGUFFile
from tinytorch.pretrained.tokenizer import ChatTokenizer

sys.path.insert(0, str(ROOT / "milestones" / "06_2024_llm"))
from model_file import fetch_model, installed_model  # noqa: E402

SINKS = 4
BLOCK = 256  # tokens of one point of the curve
PROMPT = "The history of the lighthouse begins"
NEW, TEXT, WINDOW = 10_000, 3_000, 512
ENDS = 500  # tokens of a median
CACHES = {  # what Reader takes
    "full": {"window": None},
    "window, no sinks": {"sinks": 0},
    "window, sinks at their positions in the text": {"sinks": SINKS},
    "window, sinks at their positions in the cache": {"sinks": SINKS, "near": True},
}


def prose(tokenizer, num_tokens: int) -> list:
    """The first tokens of the course's own prose: the markdown of its modules, one after the other."""
    tokens = []
    for file in sorted((ROOT / "modules").glob("*/*_dev.py")):
        cells = jupytext.read(file, fmt="py:percent").cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        tokens += tokenizer.encode(text + "\n\n")
        if len(tokens) >= num_tokens:
            return tokens[:num_tokens]
    raise ValueError(f"the course's prose has {len(tokens)} tokens, {num_tokens} were asked for")


def write(file: Path, threads: int, prompt: list, new: int, window: int) -> dict:
    full = window + SINKS
    ends = min(ENDS, (len(prompt) + new - full) // 2)
    if ends < 1:
        raise ValueError(f"{len(prompt)} and {new} tokens do not fill a window of {window} twice over")
    setup = {"file": str(file), "room": len(prompt) + new, "window": window, "sinks": SINKS, "near": True}
    with Worker("chat_window:Reader", threads, **setup) as worker:
        return worker.ask("write", prompt=prompt, new=new, full=full, ends=ends)


def read(file: Path, threads: int, tokens: list, window: int) -> dict:
    curves = {}
    for name, options in CACHES.items():
        setup = {"file": str(file), "room": len(tokens), "window": window, **options}
        with Worker("chat_window:Reader", threads, **setup) as worker:
            curves[name] = worker.ask("read", tokens=tokens, block=BLOCK)
    return curves


def show(results: dict, console: Console) -> None:
    said = results["write"]
    console.print(f"{said['tokens']} tokens written, {said['tokens_per_second']:.3g} a second")
    for end in (said["first"], said["last"]):
        console.print(
            f"  tokens {end['from']} to {end['to']}: {end['ms_per_token']:.3g} ms per token (median), "
            f"cache {end['cache_bytes'] / 1e6:.2f} MB, peak of the process {end['peak_bytes'] / 1e6:.0f} MB"
        )
    table = Table(title=f"Perplexity, a window of {results['window']}, {SINKS} sinks, blocks of {BLOCK}")
    table.add_column("tokens")
    for name in results["read"]:
        table.add_column(name, justify="right")
    for place, row in enumerate(
        zip(*(curve["perplexity"] for curve in results["read"].values()), strict=True)
    ):
        table.add_row(f"{place * BLOCK + 1} to {(place + 1) * BLOCK}", *(f"{p:.4g}" for p in row))
    table.add_row("cache, MB", *(f"{curve['cache_bytes'] / 1e6:.1f}" for curve in results["read"].values()))
    console.print(table)


@click.command(help=__doc__)
@click.option("--new", type=click.IntRange(1), help=f"Tokens to write: {NEW}.")
@click.option("--text", type=click.IntRange(BLOCK + 1), help=f"Tokens to read: {TEXT}.")
@click.option("--window", type=click.IntRange(1), help=f"Tokens that a token sees: {WINDOW}.")
@click.option("--threads", type=click.IntRange(1), default=processors, show_default="all processors")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the figures go.")
def main(new, text, window, threads, output):
    console = Console(width=None if sys.stdout.isatty() else 110)
    as_published = not (new or text or window)
    new, text, window = new or NEW, text or TEXT, window or WINDOW
    try:
        file = installed_model() or fetch_model()
        tokenizer = ChatTokenizer.from_metadata(GGUFFile(file).metadata)
        with Worker("machine:Facts", threads) as worker:
            results = {"machine": worker.ask("run"), "window": window, "sinks": SINKS, "block": BLOCK}
        results["read"] = read(file, threads, prose(tokenizer, text), window)
        results["text_tokens"] = text
        results["write"] = {"tokens": new} | write(file, threads, tokenizer.encode(PROMPT), new, window)
    except (WorkerFailed, ValueError) as failed:
        raise click.ClickException(str(failed)) from failed
    show(results, console)
    if output or as_published:
        write_atomically(output or FOLDER / "window.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
