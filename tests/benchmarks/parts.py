"""What is measured, one function per part: a plan -> a part of results.json."""

from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep

import numpy as np

import guard
from counts import predicted_speedup
from plan import PAUSE, Job, Plan, Worker, figure, in_turn, ratio, spread
from shapes import weight_numbers

OURS = "tinytorch"
DYNAMIC, STATIC = "transformers dynamic", "transformers static"
TORCH = (DYNAMIC, STATIC)
UNCACHED, PLAIN, FLOOR = "tinytorch uncached", "plain numpy", "floor"
CONTENDERS = {  # in the order of their turns: ours between those it is compared with
    DYNAMIC: ("theirs:Generation", {"cache": "dynamic"}),
    OURS: "ours:Cached",
    STATIC: ("theirs:Generation", {"cache": "static"}),
    UNCACHED: "ours:Uncached",
    PLAIN: "plain_numpy:Plain",
}
PROMPTS = (16, 512)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (10, 25, 50, 100, 200, 500, 1000)
ROOM = 4224  # positions of the models that decode at CONTEXTS


def generate_jobs(shape: str, prompt: int, workers: dict, quick: bool) -> dict:
    """name -> Job: a whole generation by each contender, fewer tokens by the slow ones."""
    new = {"tiny": 64, "small": 16}[shape] if quick else {"tiny": 128, "small": 32}[shape]
    slow = {"tiny": 16, "small": 6 if prompt < 100 else 3}[shape]
    jobs = {}
    for name, worker in workers.items():
        options = {"prompt": prompt, "new": slow if name in (UNCACHED, PLAIN) else new}
        rounds = (1 if quick else 2) if options["new"] == 3 else None
        jobs[name] = Job(worker, "generate", options, rounds)
    return jobs


def generate_rows(said: dict) -> dict:
    """What the contenders of one shape and prompt said -> their figures, and ratios of theirs over ours."""
    ours = said[OURS]
    rows = {}
    for name, answers in said.items():
        row = {"ms_per_token": figure(answers, "ms_per_token")}
        row["ms_per_token_over_ours"] = ratio(answers, ours, "ms_per_token")
        if name != FLOOR:
            tokens = answers[0]["tokens"]
            row["prefill_ms"] = figure(answers, "first_ms")
            row["prefill_over_ours"] = ratio(answers, ours, "first_ms")
            row["tokens_per_second"] = figure(answers, "tokens_per_second")
            row["new_tokens"] = len(tokens)
            row["same_tokens"] = tokens == ours[0]["tokens"][: len(tokens)]
        rows[name] = row
    return rows


def generate(plan: Plan) -> dict:
    """Greedy generation by all contenders, both shapes, a short and a long prompt."""
    contenders = {name: kind for name, kind in CONTENDERS.items() if not (plan.quick and name in TORCH)}
    results = {}
    for shape in ("tiny", "small"):
        results[shape] = {}
        with ExitStack() as stack:
            floor = stack.enter_context(Worker("floor:Floor", plan.threads, shape=shape))
            workers = plan.workers(stack, contenders, shape=shape)
            for prompt in PROMPTS:
                jobs = {FLOOR: Job(floor, "stream", {"new": 16})}
                jobs |= generate_jobs(shape, prompt, workers, plan.quick)
                results[shape][str(prompt)] = generate_rows(in_turn(jobs, plan.rounds))
    return results


def context(plan: Plan) -> dict:
    """One more token after n, with the cache and without, and the floor, which knows no n."""
    return {shape: context_of(plan, shape) for shape in ("tiny", "small")}


def context_of(plan: Plan, shape: str) -> dict:
    new = {"tiny": 64, "small": 8 if plan.quick else 16}[shape]
    longest = {"tiny": 1024 if plan.quick else 4096, "small": 256 if plan.quick else 1024}[shape]
    with ExitStack() as stack:
        floor = stack.enter_context(Worker("floor:Floor", plan.threads, shape=shape))
        both = {"cached": "ours:Cached", "uncached": "ours:Uncached"}
        workers = plan.workers(stack, both, shape=shape, max_seq_len=ROOM)
        jobs = {"floor": Job(floor, "stream", {"new": new}), "products": Job(floor, "products", {"new": new})}
        for length in (128, 100, 1000, *CONTEXTS[1:]):  # what is compared stands side by side
            options = {"context": length, "new": new}
            jobs["cached", length] = Job(workers["cached"], "decode", options)
        for length in CONTEXTS:
            if length <= longest:
                rounds = None if length <= 256 else 2 if length <= 1024 else 1
                jobs["uncached", length] = Job(workers["uncached"], "steps", {"lengths": [length]}, rounds)
        said = in_turn(jobs, plan.rounds)
    lines = {"floor": figure(said["floor"], "ms_per_token")}
    lines["products"] = figure(said["products"], "ms_per_token")
    for way in both:
        lengths = sorted(key[1] for key in said if key[0] == way)
        lines[way] = {str(n): figure(said[way, n], "ms_per_token") for n in lengths}
    return {
        "ms_per_token": lines,
        "floor_bytes": 4 * weight_numbers(shape),
        "cached_at_128_over_floor": ratio(said["cached", 128], said["floor"], "ms_per_token"),
        "cached_at_128_over_products": ratio(said["cached", 128], said["products"], "ms_per_token"),
        "cached_at_1000_over_100": ratio(said["cached", 1000], said["cached", 100], "ms_per_token"),
    }


def batch(plan: Plan) -> dict:
    """Cached decode of several rows in one step, after 128 tokens each: tokens per second of all rows."""
    with Worker("ours:Cached", plan.threads, shape="small", max_seq_len=256) as worker:
        options = {"context": 128, "new": 8}
        jobs = {rows: Job(worker, "decode", options | {"batch": rows}) for rows in BATCHES}
        said = in_turn(jobs, plan.rounds)
    rates = {rows: [1e3 * rows / a["ms_per_token"] for a in answers] for rows, answers in said.items()}
    return {
        "tokens_per_second": {str(rows): spread(values) for rows, values in rates.items()},
        "over_batch_1": {
            str(rows): spread(np.divide(values, rates[1])) for rows, values in rates.items() if rows > 1
        },
    }


def speedup(plan: Plan) -> dict:
    """A whole generation from a 1-token prompt, cached over uncached, with what counting predicts."""
    shapes = ("tiny",) if plan.quick else ("tiny", "small")
    return {shape: speedup_of(plan, shape) for shape in shapes}


def speedup_of(plan: Plan, shape: str) -> list:
    """One generation of the greatest length is every shorter one too.

    The small shape's uncached steps take a quarter of an hour: unless plan.every_step, after token 200 one of
    20 is measured and stands for the others.
    """
    longest = 200 if plan.quick else LENGTHS[-1]
    whole = 200 if shape == "small" and not plan.every_step else longest
    ends = [10, 25, 50, *range(60, longest + 1, 20)]
    with ExitStack() as stack:
        both = {"cached": "ours:Cached", "uncached": "ours:Uncached"}
        workers = plan.workers(stack, both, shape=shape)
        for worker in workers.values():
            worker.ask("generate", prompt=1, new=16)
        rounds = [
            piece_by_piece(workers, ends, whole) for _ in range(1 if plan.quick else min(2, plan.rounds))
        ]
    rows = []
    for n in LENGTHS:
        if n <= longest:
            ratios = [sum(seconds["uncached"][:n]) / sum(seconds["cached"][:n]) for seconds in rounds]
            row = {"new_tokens": n, "cached_over_uncached": spread(ratios)}
            row["predicted"] = round(predicted_speedup(shape, n), 2)
            row["uncached_steps_measured"] = min(n, whole) + sum(whole < end <= n for end in ends)
            rows.append(row)
    return rows


def piece_by_piece(workers: dict, ends: list, whole: int) -> dict:
    """A generation by both in turn, up to each of `ends` -> name -> the seconds of each token.

    They take minutes, in which the machine changes; so they change places every few tokens.
    """
    seconds = {name: [] for name in workers}
    for worker in workers.values():
        worker.ask("begin", prompt=1, new=ends[-1])
    for start, stop in pairwise([0, *ends]):
        for name, worker in workers.items():
            sleep(PAUSE)
            if name == "uncached" and stop > whole:
                (milliseconds,) = worker.ask("steps", lengths=[(start + stop + 1) // 2])["ms"]
                seconds[name] += (stop - start) * [milliseconds / 1e3]
            else:
                seconds[name] += worker.ask("go_on", tokens=stop - start)["seconds"]
    return seconds


def memory(plan: Plan) -> dict:
    """Peak of a process that builds the small model, reads 512 tokens with the cache on, and writes 64."""
    answers = []
    for _ in range(1 if plan.quick else min(3, plan.rounds)):
        with Worker("memory:Peak", plan.threads, shape="small") as worker:
            answers.append(worker.ask("run", prompt=512, new=64))
    return {key: figure(answers, key) for key in answers[0]}


def training(plan: Plan) -> dict:
    """The chat model's training step, batch 8 of 256 tokens, ours and PyTorch's."""
    contenders = (
        {OURS: "ours:Training"} if plan.quick else {OURS: "ours:Training", "pytorch": "theirs:Training"}
    )
    with ExitStack() as stack:
        workers = plan.workers(stack, contenders, shape="chat", batch=8, context=256)
        said = in_turn({name: Job(w, "train", {"steps": 2}) for name, w in workers.items()}, plan.rounds)
    result = {"tokens_per_second": {name: figure(a, "tokens_per_second") for name, a in said.items()}}
    if not plan.quick:
        result["ours_over_pytorch"] = ratio(said[OURS], said["pytorch"], "tokens_per_second")
        losses = [said[name][0]["losses"] for name in (OURS, "pytorch")]
        result["largest_difference_of_first_losses"] = float(np.abs(np.subtract(*losses)).max())
    return result


def logits(plan: Plan) -> dict:
    """The largest difference of any logit of 80 tokens, cached (16, then one by one) against the others."""
    names = (OURS, UNCACHED) if plan.quick else (OURS, UNCACHED, DYNAMIC)
    contenders = {name: CONTENDERS[name] for name in names}
    results = {}
    for shape in ("tiny", "small"):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            found = {}
            for name, worker in plan.workers(stack, contenders, shape=shape, max_seq_len=128).items():
                file = folder / f"{name}.npy"
                worker.ask("logits", length=80, file=str(file))
                found[name] = np.load(file)
        ours = found.pop(OURS)
        results[shape] = {
            f"cached against {name}": float(np.abs(ours - theirs).max()) for name, theirs in found.items()
        }
        results[shape]["standard_deviation"] = float(ours.std())
    return results


PARTS = {
    "generate": generate,
    "context": context,
    "batch": batch,
    "speedup": speedup,
    "memory": memory,
    "training": training,
    "logits": logits,
    "guard": guard.measure,
}
