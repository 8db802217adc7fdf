"""Measure SmolLM2 on a pool of blocks: conversations that begin with the same prompt, against plain caches.

The pool and the plain caches have a process each and take turns, conversation by conversation. If all plain
conversations would take over three minutes, only some are read, and their seconds are multiplied; the result
says so. paged.json is written, unless --conversations or --output says otherwise.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from time import sleep

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from plan import FOLDER, PAUSE, ROOT, Plan, Worker, WorkerFailed, spread
from run import processors, write_atomically
from tinytorch.generation.paged import blocks_for, unused_slots
from tinytorch.pretrained.gguf_file import GGUFFile
from tinytorch.pretrained.tokenizer import ChatTokenizer

sys.path.insert(0, str(ROOT / "milestones" / "06_2024_llm"))
from model_file import fetch_model, installed_model  # noqa: E402

PROMPT = 500  # tokens that all conversations begin with
NEW = 8  # tokens of an answer
BLOCK_SIZE = 16
STEP = 64  # a plain cache is made for its own conversation, rounded up to this many tokens
RESERVED = 2048  # and this is what it takes if nobody knows how long the conversation becomes
MINUTES = 3  # that the plain conversations may take
SOME = 5  # how many of them are read if it would be more
PLACES = ("Aldby", "Brenna", "Corrin", "Dunmore", "Eskdale", "Farrow", "Glenties", "Hollin", "Innis", "Jura")


def system_prompt(tokenizer: ChatTokenizer, length: int = PROMPT) -> tuple[str, list]:
    """-> a timetable of ferries as a system message, and its tokens, `length` of them."""
    words = "You answer questions of travellers about the ferries of today, in one short sentence.".split()
    for i, hour in enumerate(range(6, 23)):
        here, there = PLACES[i % 10], PLACES[(3 * i + 1) % 10]
        ferry = (
            f"Ferry {i + 1} leaves {here} at {hour}:{10 + 2 * i} and is in {there} at {hour + 1}:{12 + i}."
        )
        words += [*ferry.split(), *f"It takes {20 + 7 * i} cars.".split()]
    for count in range(len(words), 0, -1):
        for please in range(8):
            text = " ".join([*words[:count], *["please"] * please])
            tokens = tokenizer.opening(text)
            if len(tokens) == length:
                return text, tokens
    raise ValueError(f"no beginning of the timetable has {length} tokens")


def questions(tokenizer: ChatTokenizer, count: int) -> list:
    """-> the tokens of `count` different turns of some 10 to 40 tokens."""
    long = (
        "",
        " I come with a bicycle.",
        " I come by car, with two children and a small dog.",
        " I come by bus and have to be there before noon, since my sister waits for me at the pier.",
    )
    return [
        tokenizer.turn(f"When does ferry {i % 17 + 1} leave{' today' if i > 16 else ''}?{long[i % 4]}")
        for i in range(count)
    ]


def converse(plan: Plan, file: Path, prompt: list, turns: list, minutes: float) -> dict:
    """All conversations on the pool, all or some on plain caches."""
    texts = [prompt + turn for turn in turns]
    rooms = [-(-(len(text) + NEW - 1) // STEP) * STEP for text in texts]
    blocks = sum(blocks_for(len(text) + NEW, BLOCK_SIZE) for text in texts[:1])
    blocks += sum(blocks_for(len(text) + NEW - PROMPT + BLOCK_SIZE, BLOCK_SIZE) for text in texts[1:])
    said, plain_turns = {"pool": [], "plain": []}, len(texts)
    with ExitStack() as stack:
        setup = {"pool": {"blocks": blocks, "block_size": BLOCK_SIZE}, "plain": {}}
        workers = {
            name: stack.enter_context(
                Worker("paged_ours:Conversations", plan.threads, file=str(file), **more)
            )
            for name, more in setup.items()
        }
        for worker in workers.values():
            worker.ask("decode", length=STEP, steps=1)  # a warm-up that leaves nothing
        for i, (text, room) in enumerate(zip(texts, rooms, strict=True)):
            for name in ("pool", "plain"):
                if name == "plain" and i >= plain_turns:
                    continue
                sleep(PAUSE)  # until the other's threads have fallen asleep
                said[name].append(workers[name].ask("converse", text=text, new=NEW, room=room))
            if i == 0 and said["plain"][0]["seconds"] * len(texts) > 60 * minutes:
                plain_turns = min(SOME, len(texts))
        held = workers["pool"].ask("held")
    return summary(said, held, rooms, [len(turn) for turn in turns])


def summary(said: dict, held: dict, rooms: list, lengths: list) -> dict:
    """What both said -> bytes, seconds, tokens, unused slots."""
    pool, plain = said["pool"], said["plain"]
    token_bytes = plain[0]["bytes"] // rooms[0]
    stored = [answer["stored"] for answer in pool]
    distinct = sum(answer["stored"] - answer["shared"] for answer in pool)
    plain_bytes = token_bytes * sum(rooms)
    plain_seconds = float(np.mean([answer["seconds"] for answer in plain])) * len(pool)
    pool_seconds = sum(answer["seconds"] for answer in pool)
    same = sum(a["tokens"] == b["tokens"] for a, b in zip(pool, plain, strict=False))
    return {
        "conversations": len(pool),
        "prompt_tokens": PROMPT,
        "question_tokens": [min(lengths), max(lengths)],
        "new_tokens": NEW,
        "bytes": {
            "plain": plain_bytes,
            "plain_rounded_up_to_tokens": STEP,
            "plain_exact": token_bytes * sum(stored),
            "pool_held": held["held_bytes"],
            "pool_arrays": held["pool_bytes"],
            "plain_over_held": plain_bytes / held["held_bytes"],
            "exact_over_held": token_bytes * sum(stored) / held["held_bytes"],
            "plain_over_pool_arrays": plain_bytes / held["pool_bytes"],
        },
        "prefill_seconds": {
            "plain": plain_seconds,
            "plain_conversations_measured": len(plain),
            "plain_each": spread(answer["seconds"] for answer in plain),
            "pool": pool_seconds,
            "pool_first": pool[0]["seconds"],
            "pool_each_later": spread(answer["seconds"] for answer in pool[1:] or pool),
            "plain_over_pool": plain_seconds / pool_seconds,
        },
        "answers": {"compared": len(plain), "same_tokens": same},
        "slots": {
            "tokens_of_all_conversations": sum(stored),
            "tokens_stored_once": distinct,
            "pool": held["slots"],
            "pool_unused": held["slots"] - distinct,
            "pool_unused_share": (held["slots"] - distinct) / held["slots"],
            "blocks_without_sharing_unused": unused_slots(stored, held["block_size"]),
            "reserved": RESERVED * len(pool),
            "reserved_unused": RESERVED * len(pool) - sum(stored),
            "reserved_unused_share": 1 - sum(stored) / (RESERVED * len(pool)),
            "exact": sum(stored),
            "exact_unused": 0,
        },
        "blocks": {"open": held["counts"], "closed": held["counts_after"], "block_size": held["block_size"]},
    }


def decode(plan: Plan, file: Path, lengths: list) -> dict:
    """length -> milliseconds per token of each kind of table, and over the plain cache's, step by step."""
    rows = {}
    with Worker("paged_ours:Conversations", plan.threads, file=str(file)) as worker:
        for length in lengths:
            said = worker.ask("decode", length=length, steps=plan.rounds * 4)
            rows[str(length)] = {
                name: {
                    "ms_per_token": spread(times),
                    "over_plain": spread(np.array(times) / said["ms"]["plain"]),
                    "runs": said["runs"].get(name),
                }
                for name, times in said["ms"].items()
            }
    return rows


def show(results: dict, console: Console) -> None:
    whole = results["conversations"]
    table = Table(
        title=f"{whole['conversations']} conversations, a prompt of {whole['prompt_tokens']} tokens"
    )
    for column in ("", "plain caches", "one pool", "factor"):
        table.add_column(column, justify="right" if column else "left")
    size, seconds, slots = whole["bytes"], whole["prefill_seconds"], whole["slots"]
    for name, plain, pool, factor in (
        ("MB", size["plain"] / 1e6, size["pool_held"] / 1e6, size["plain_over_held"]),
        ("MB, exact rows", size["plain_exact"] / 1e6, size["pool_held"] / 1e6, size["exact_over_held"]),
        ("prefill, s", seconds["plain"], seconds["pool"], seconds["plain_over_pool"]),
    ):
        table.add_row(name, f"{plain:,.1f}", f"{pool:,.1f}", f"{factor:.1f}")
    console.print(table)
    console.print(
        f"plain conversations measured: {seconds['plain_conversations_measured']}", whole["answers"]
    )
    console.print(slots, results["decode"])


@click.command(help=__doc__)
@click.option("--conversations", type=click.IntRange(1, 200), help="How many: 50.")
@click.option(
    "--minutes", type=float, default=MINUTES, show_default=True, help="For all plain conversations."
)
@click.option("--threads", type=click.IntRange(1), default=processors, show_default="all processors")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where the figures go.")
def main(conversations, minutes, threads, output):
    console = Console(width=None if sys.stdout.isatty() else 110)
    plan = Plan(threads, rounds=2 if conversations else 5)
    try:
        file = installed_model() or fetch_model()
        tokenizer = ChatTokenizer.from_metadata(GGUFFile(file).metadata)
        system, prompt = system_prompt(tokenizer)
        turns = questions(tokenizer, conversations or 50)
        with Worker("machine:Facts", threads) as worker:
            results = {"machine": worker.ask("run"), "system": system}
        results["conversations"] = converse(plan, file, prompt, turns, minutes)
        results["decode"] = decode(plan, file, [512] if conversations else [512, 1024, 2000])
    except (WorkerFailed, ValueError) as failed:
        raise click.ClickException(str(failed)) from failed
    show(results, console)
    if output or not conversations:
        write_atomically(output or FOLDER / "paged.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
