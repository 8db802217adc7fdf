"""Measure what SmolLM2-135M-Instruct says through caches of 16, 8 and 4 bits, and how fast.

All caches have default arguments and take turns in one process. The text is the prose of module 15, read in
pieces, so that what was quantised is really used. quantized.json is written, unless --quick or --output says
otherwise.
"""

import json
import re
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from plan import FOLDER, ROOT, Job, Plan, Worker, WorkerFailed, figure, in_turn, ratio
from run import processors, write_atomically
from tinytorch.pretrained.gguf_file import GGUFFile
from tinytorch.pretrained.tokenizer import ChatTokenizer

sys.path.insert(0, str(ROOT / "milestones" / "06_2024_llm"))
from model_file import fetch_model, installed_model  # noqa: E402

PROSE = ROOT / "modules" / "15_kvcaching" / "kvcaching_dev.py"
QUESTIONS = (
    "Explain to a child how the seasons come about.",
    "Write a short story about a lighthouse keeper and a lost ship.",
    "What is the difference between a virus and a bacterium?",
    "Give me a simple recipe for bread and explain each step.",
    "Why did people build castles, and why did they stop?",
)
PIECE = 64  # tokens of the text read at a time
STEPS = 12  # tokens timed in a turn
FULL = {"context": 2000, "text": 1500, "questions": 5, "new": 200}
QUICK = {"context": 160, "text": 200, "questions": 1, "new": 50}


def prose() -> str:
    """The words of a module: its markdown cells."""
    cells = re.findall(r'^# %% \[markdown\]\n"""\n(.*?)^"""', PROSE.read_text(encoding="utf-8"), re.S | re.M)
    return "\n".join(cells)


def measure(plan: Plan, file: Path, sizes: dict, console: Console) -> dict:
    tokenizer = ChatTokenizer.from_metadata(GGUFFile(file).metadata)
    text = tokenizer.encode(prose())
    longest = max(sizes["text"], sizes["context"])
    if len(text) < longest:
        raise ValueError(f"{PROSE.name} has {len(text)} tokens of prose, {longest} are asked for")
    with Worker("chat_quantized:Caches", plan.threads, file=str(file)) as worker:
        room = worker.ask("sizes", max_seq_len=sizes["context"])
        rows = {name: {"bytes": n, "bytes_over_plain": n / room["plain"]} for name, n in room.items()}
        console.print("bytes are counted; reading")
        quality = worker.ask("quality", tokens=text[: sizes["text"]], piece=PIECE)
        console.print("the text is read; writing")
        answers = []
        for question in QUESTIONS[: sizes["questions"]]:
            prompt = tokenizer.chat([{"role": "user", "content": question}])
            answers.append(worker.ask("write", prompt=prompt, new=sizes["new"]))
        console.print("the answers are written; timing")
        worker.ask("fill", tokens=text[: sizes["context"]], piece=PIECE, room=STEPS)
        jobs = {name: Job(worker, "steps", {"name": name, "steps": STEPS}) for name in rows}
        said = in_turn(jobs, plan.rounds)
    for name, row in rows.items():
        row |= quality[name]
        row["same_tokens"] = [answer[name] for answer in answers]
        row |= {key: figure(said[name], key) for key in ("ms_per_token", "tokens_per_second")}
        row["ms_per_token_over_plain"] = ratio(said[name], said["plain"], "ms_per_token")
    return rows


def show(results: dict, console: Console) -> None:
    sizes = results["sizes"]
    table = Table(title=f"SmolLM2-135M, caches after {sizes['context']} tokens")
    heads = "", "bytes", "perplexity", "logit error", "same best guess", f"same of {sizes['new']}", "tokens/s"
    for column in (*heads, "ms over plain"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in results["caches"].items():
        speed, over = (row[key] for key in ("tokens_per_second", "ms_per_token_over_plain"))
        table.add_row(
            name,
            f"{row['bytes_over_plain']:.4f}",
            f"{row['perplexity']:.3f}",
            f"{row['largest_logit_error']:.3f}",
            f"{row['same_best_guess']:.1%}",
            " ".join(map(str, row["same_tokens"])),
            f"{speed['median']:.3g} ({speed['low']:.3g} to {speed['high']:.3g})",
            f"{over['median']:.3g} ({over['low']:.3g} to {over['high']:.3g})",
        )
    console.print(table)


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Turns that count.")
@click.option("--threads", type=click.IntRange(1), default=processors, show_default="all processors")
@click.option("--quick", is_flag=True, help="Small sizes, to see that it runs; writes nothing by itself.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the figures go.")
def main(rounds, threads, quick, output):
    console = Console(width=None if sys.stdout.isatty() else 120)
    plan, sizes = Plan(threads, rounds), QUICK if quick else FULL
    try:
        file = installed_model() or fetch_model()
        with Worker("machine:Facts", threads) as worker:
            results = {"machine": worker.ask("run"), "sizes": sizes | {"piece": PIECE, "steps": STEPS}}
        results |= {"text": str(PROSE.relative_to(ROOT)), "questions": QUESTIONS[: sizes["questions"]]}
        results["caches"] = measure(plan, file, sizes, console)
    except (WorkerFailed, ValueError) as failed:
        raise click.ClickException(str(failed)) from failed
    show(results, console)
    if output or not quick:
        write_atomically(output or FOLDER / "quantized.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
