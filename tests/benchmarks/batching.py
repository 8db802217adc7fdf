"""Measure continuous batching on SmolLM2-135M-Instruct: mixed requests one at a time, and in a batch.

All of them greedy and there from the start. The contenders run in turn, in one process, and ratios are taken
round by round. batching.json is written, unless --rounds, --requests, --most-new or --output says otherwise.
"""

import json
import sys
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from goals import CACHE_GOALS, goal_table
from plan import FOLDER, ROOT, Job, Plan, Worker, WorkerFailed, figure, in_turn, ratio
from run import processors, write_atomically

sys.path.insert(0, str(ROOT / "milestones" / "06_2024_llm"))
from model_file import fetch_model, installed_model  # noqa: E402

ROWS = (1, 2, 4, 8, 16)  # requests that run at a time
CHUNK = 256  # prompt tokens a step reads; the more, the more tokens per second, and the longer a step
SHORT_CHUNK = 64  # for comparison, with the most rows
PROMPT, NEW = (10, 300), (16, 128)  # tokens of a request, the least and the most
ALONE = "one at a time"


def mixed_requests(count: int, most_new: int, vocab_size: int = 49_152) -> list:
    """-> [(prompt, new)], the same every time; the tokens are random, but for the special ones in front."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(PROMPT[0], PROMPT[1] + 1, count)
    new = rng.integers(min(NEW[0], most_new), most_new + 1, count)
    prompts = [rng.integers(1000, vocab_size, length).tolist() for length in lengths]
    return list(zip(prompts, new.tolist(), strict=True))


def same_tokens(mine: list, theirs: list) -> int:
    """How many tokens of each request are the same up to the first that differs, all requests together."""
    total = 0
    for a, b in zip(mine, theirs, strict=True):
        same = np.equal(a, b)
        total += len(same) if same.all() else int(same.argmin())
    return total


def measure(plan: Plan, file: Path, requests: list, rows=ROWS) -> dict:
    """The same requests one at a time, and in batches of each size."""
    with Worker("batching_ours:Serving", plan.threads, file=str(file)) as worker:
        jobs = {ALONE: Job(worker, "one_at_a_time", {"requests": requests})}
        for n in rows:
            options = {"requests": requests, "max_requests": n, "chunk": CHUNK}
            jobs[f"batch of {n}"] = Job(worker, "in_a_batch", options)
        jobs[f"batch of {n}, chunk {SHORT_CHUNK}"] = Job(
            worker, "in_a_batch", options | {"chunk": SHORT_CHUNK}
        )
        worker.ask("one_at_a_time", requests=[(prompt[:20], 2) for prompt, _ in requests[:2]])
        said = in_turn(jobs, plan.rounds, warm_up=False)
    result = {}
    for name, answers in said.items():
        row = {key: figure(answers, key) for key in ("seconds", "tokens_per_second", "first_ms")}
        row["over_one_at_a_time"] = ratio(answers, said[ALONE], "tokens_per_second")
        row["same_tokens"] = min(
            same_tokens(a["tokens"], b["tokens"]) for a, b in zip(answers, said[ALONE], strict=True)
        )
        if name != ALONE:
            row["steps"] = answers[0]["steps"]
            row["longest_step_ms"] = figure(answers, "longest_step_ms")
        result[name] = row
    return result


def show(results: dict, console: Console) -> None:
    new = results["requests"]["new_tokens"]
    table = Table(title=f"{results['requests']['count']} requests, {new} new tokens, SmolLM2-135M")
    for column in ("", "seconds", "tokens/s", "over one at a time", "first token, ms", "same tokens"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in results["rows"].items():
        keys = ("seconds", "tokens_per_second", "over_one_at_a_time", "first_ms")
        cells = [f"{row[k]['median']:.3g} ({row[k]['low']:.3g} to {row[k]['high']:.3g})" for k in keys]
        table.add_row(name, *cells, f"{row['same_tokens']} of {new}")
    console.print(table)


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), help="How often each contender's turn counts: 3.")
@click.option("--requests", "count", type=click.IntRange(1), help="How many requests: 16.")
@click.option(
    "--most-new", type=click.IntRange(1, NEW[1]), help=f"New tokens of a request, at most: {NEW[1]}."
)
@click.option("--threads", type=click.IntRange(1), default=processors, show_default="all processors")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the figures go.")
def main(rounds, count, most_new, threads, output):
    console = Console(width=None if sys.stdout.isatty() else 110)
    plan, whole = Plan(threads, rounds or 3), not (rounds or count or most_new)
    requests = mixed_requests(count or 16, most_new or NEW[1])
    try:
        file = installed_model() or fetch_model()
        with Worker("machine:Facts", threads) as worker:
            results = {"machine": worker.ask("run")}
        results["requests"] = {
            "count": len(requests),
            "prompt_tokens": [len(prompt) for prompt, _ in requests],
            "new_tokens_each": [new for _, new in requests],
            "new_tokens": sum(new for _, new in requests),
            "chunk": CHUNK,
        }
        results["rows"] = measure(plan, file, requests)
    except (WorkerFailed, ValueError) as failed:
        raise click.ClickException(str(failed)) from failed
    show(results, console)
    console.print(goal_table({"batching": results}, CACHE_GOALS))
    if output or whole:
        write_atomically(output or FOLDER / "batching.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
