"""Measure TinyTorch against transformers, a plain NumPy loop and the memory's bandwidth.

Everything runs in turn, each contender in a process of its own with as many threads; figures are medians,
ratios are taken round by round. Times are of one machine on one day: use the ratios. Without --quick or
--only, results.json and the figures are written.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import click
from rich.console import Console

from goals import GOALS, goal_table
from parts import PARTS
from plan import FOLDER, Plan, Worker, WorkerFailed
from shapes import SHAPES
from tables import tables


def write_atomically(path: Path, text: str) -> None:
    """The file holds the old text or the new one, whatever interrupts."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def measure(plan: Plan, names: list, console: Console) -> dict:
    """name of a part -> what it measured; shown as it comes."""
    with Worker("machine:Facts", plan.threads) as worker:
        results = {"machine": worker.ask("run")}
    results["shapes"] = {name: shape._asdict() for name, shape in SHAPES.items()}
    console.print(results["machine"])
    busy = results["machine"]["load_average"]
    if busy is not None and busy > 0.5:
        console.print(
            f"Other processes are busy (load average {busy}): single times mean nothing, ratios little."
        )
    for name in names:
        started = perf_counter()
        results[name] = PARTS[name](plan)
        console.rule(f"{name}, {perf_counter() - started:.0f} s")
        for table in tables(name, results[name]):
            console.print(table)
    return results


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Without PyTorch, in under two minutes; nothing is written.")
@click.option(
    "--only", type=click.Choice(list(PARTS)), multiple=True, help="These parts; nothing is written."
)
@click.option("--rounds", type=click.IntRange(1), help="How often each contender's turn counts: 5, quick 2.")
@click.option("--threads", type=click.IntRange(1), default=processors, show_default="all processors")
@click.option(
    "--every-step", is_flag=True, help="Interpolate no uncached step of the small shape (+ 15 minutes)."
)
@click.option(
    "--output",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=FOLDER,
    help="Where results.json and the figures go.",
)
def main(quick, only, rounds, threads, every_step, output):
    if not quick and not (find_spec("torch") and find_spec("transformers")):
        raise click.ClickException(
            "torch and transformers are not installed: `make bench` installs them, --quick does without"
        )
    console = Console(width=None if sys.stdout.isatty() else 110)
    plan = Plan(threads, rounds or (2 if quick else 5), quick, every_step)
    try:
        names = only or [name for name in PARTS if not (quick and name == "guard")]
        results = measure(plan, names, console)
    except WorkerFailed as failed:
        raise click.ClickException(str(failed)) from failed
    table = goal_table(results, GOALS)
    if table.row_count:
        console.print(table)
    if not quick and not only:
        from figures import draw_all

        write_atomically(output / "results.json", json.dumps(results, indent=1) + "\n")
        draw_all(results, output)


if __name__ == "__main__":
    main()
