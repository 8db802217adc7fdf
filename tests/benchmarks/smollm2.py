"""Measure SmolLM2-135M-Instruct on the cache: against itself without, transformers and llama.cpp.

Everything runs in turn, each contender in a process of its own with as many threads; ratios are taken round
by round. smollm2.json is written, unless --rounds or --output says otherwise.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from float32_gguf import write_float32
from goals import CHAT_GOALS, goal_table
from plan import FOLDER, ROOT, Job, Plan, Worker, WorkerFailed, figure, in_turn, ratio, spread
from run import processors, write_atomically
from tinytorch.pretrained.gguf_file import GGUFFile
from tinytorch.pretrained.tokenizer import ChatTokenizer

sys.path.insert(0, str(ROOT / "milestones" / "06_2024_llm"))
from model_file import fetch_model, installed_model  # noqa: E402

QUESTION = "Explain to a child how the seasons come about."
OURS, THEIRS = "tinytorch", "transformers"
CPP, CPP4 = "llama.cpp float32", "llama.cpp 4-bit file"
NEW = 128  # tokens of a round
LONG = 200  # tokens of the generation with and without the cache


def generate(plan: Plan, file: Path, prompt: list, llama_cpp: str | None) -> dict:
    """Greedy generation of NEW tokens by all contenders."""
    with ExitStack() as stack:
        workers = {THEIRS: Worker("chat_theirs:Chat", plan.threads, file=str(file))}
        workers[OURS] = Worker("chat_ours:Chat", plan.threads, file=str(file), cached=True)
        if llama_cpp:
            full = Path(stack.enter_context(TemporaryDirectory())) / "float32.gguf"
            write_float32(file, full)
            for name, its in ((CPP, full), (CPP4, file)):
                workers[name] = Worker("chat_llama_cpp:Chat", plan.threads, llama_cpp, file=str(its))
        for worker in workers.values():
            stack.enter_context(worker)
        jobs = {name: Job(w, "generate", {"prompt": prompt, "new": NEW}) for name, w in workers.items()}
        said = in_turn(jobs, plan.rounds)
    rows = {}
    for name, answers in said.items():
        rows[name] = {key: figure(answers, key) for key in ("ms_per_token", "tokens_per_second", "first_ms")}
        rows[name]["ms_per_token_over_ours"] = ratio(answers, said[OURS], "ms_per_token")
        same = np.equal(answers[0]["tokens"], said[OURS][0]["tokens"]).ravel()
        rows[name]["same_tokens_as_ours"] = int(same.argmin()) if not same.all() else len(same)
    return rows


def cache(plan: Plan, file: Path, prompt: list) -> dict:
    """A greedy generation of LONG tokens without the cache and with it, one whole one after the other."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                Worker("chat_ours:Chat", plan.threads, file=str(file), cached=name == "cached")
            )
            for name in ("uncached", "cached")
        }
        options = {"prompt": prompt, "new": LONG}
        for worker in workers.values():
            worker.ask("generate", prompt=prompt, new=4)
        jobs = {name: Job(worker, "generate", options) for name, worker in workers.items()}
        said = in_turn(jobs, min(2, plan.rounds), warm_up=False)
    rows = {name: figure(answers, "tokens_per_second") for name, answers in said.items()}
    pairs = list(zip(said["cached"], said["uncached"], strict=True))
    return {
        "prompt_tokens": len(prompt),
        "new_tokens": LONG,
        "tokens_per_second": rows,
        "cached_over_uncached": spread(a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs),
        "same_tokens": all(a["tokens"] == b["tokens"] for a, b in pairs),
    }


def load(plan: Plan, file: Path, prompt: list) -> dict:
    """Seconds to load, and the peak of a process that loads and writes a few tokens, a new one each time."""
    answers = []
    for _ in range(min(3, plan.rounds)):
        with Worker("chat_ours:Chat", plan.threads, file=str(file), cached=True) as worker:
            worker.ask("generate", prompt=prompt, new=16)
            answers.append(worker.ask("costs"))
    result = {"load_seconds": figure(answers, "load_seconds")}
    result["peak_gb"] = spread(answer["peak_bytes"] / 1e9 for answer in answers)
    return result | {key: answers[0][key] for key in ("weights_bytes", "cache_bytes_per_token")}


def show(results: dict, console: Console) -> None:
    table = Table(title=f"SmolLM2-135M, {NEW} tokens after a prompt of {results['cache']['prompt_tokens']}")
    for column in ("", "tokens/s", "ms per token", "over ours", "same tokens as ours"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in results["generate"].items():
        figures = (row[key] for key in ("tokens_per_second", "ms_per_token", "ms_per_token_over_ours"))
        cells = [f"{f['median']:.3g} ({f['low']:.3g} to {f['high']:.3g})" for f in figures]
        table.add_row(name, *cells, f"{row['same_tokens_as_ours']} of {NEW}")
    console.print(table)
    console.print(results["cache"], results["load"], goal_table(results, CHAT_GOALS))


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), help="How often each contender's turn counts: 5.")
@click.option("--threads", type=click.IntRange(1), default=processors, show_default="all processors")
@click.option(
    "--llama-cpp",
    type=click.Path(exists=True, dir_okay=False),
    help="The Python of an environment that has llama-cpp-python: llama.cpp takes part.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the figures go.")
def main(rounds, threads, llama_cpp, output):
    console = Console(width=None if sys.stdout.isatty() else 110)
    plan = Plan(threads, rounds or 5)
    try:
        file = installed_model() or fetch_model()
        tokenizer = ChatTokenizer.from_metadata(GGUFFile(file).metadata)
        prompt = tokenizer.chat([{"role": "user", "content": QUESTION}])
        with Worker("machine:Facts", threads) as worker:
            results = {"machine": worker.ask("run"), "question": QUESTION}
        results["generate"] = generate(plan, file, prompt, llama_cpp)
        results["cache"] = cache(plan, file, prompt)
        results["load"] = load(plan, file, prompt)
    except (WorkerFailed, ValueError) as failed:
        raise click.ClickException(str(failed)) from failed
    show(results, console)
    if output or not rounds:
        write_atomically(output or FOLDER / "smollm2.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
