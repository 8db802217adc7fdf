"""A few robust ratios, measured with the others and again by a test, which compares them: never seconds.

Each is the higher the better, and each falls if the cached model becomes slower.
"""

from contextlib import ExitStack

from plan import Job, Plan, Worker, in_turn, ratio

KEPT = 0.6  # a ratio below this share of the committed one is a regression


def measure(plan: Plan, cached: str = "ours:Cached") -> dict:
    """name -> the ratio's spread. cached: the contender under test."""
    with ExitStack() as stack:
        tiny = {"cached": cached, "uncached": "ours:Uncached", "plain": "plain_numpy:Plain"}
        tiny |= {"plain cached": "plain_numpy:PlainCached"}
        workers = plan.workers(stack, tiny, shape="tiny")
        small = stack.enter_context(Worker(cached, plan.threads, shape="small", max_seq_len=256))
        jobs = {
            "uncached": Job(workers["uncached"], "steps", {"lengths": 5 * [256]}),
            "cached": Job(workers["cached"], "decode", {"context": 256, "new": 300}),
            "plain cached": Job(workers["plain cached"], "decode", {"context": 256, "new": 300}),
            "prefill": Job(workers["cached"], "generate", {"prompt": 512, "new": 1}),
            "plain": Job(workers["plain"], "generate", {"prompt": 512, "new": 1}),
            "batch 1": Job(small, "decode", {"context": 64, "new": 6}),
            "batch 8": Job(small, "decode", {"context": 64, "new": 6, "batch": 8}),
        }
        said = in_turn(jobs, rounds=5)
    return {
        "tiny, context 256: uncached over cached": ratio(said["uncached"], said["cached"], "ms_per_token"),
        "tiny, context 256: plain NumPy with a cache over ours": ratio(
            said["plain cached"], said["cached"], "ms_per_token"
        ),
        "tiny, prefill of 512: plain NumPy over ours": ratio(said["plain"], said["prefill"], "first_ms"),
        "small, tokens per second: batch 8 over batch 1": ratio(
            said["batch 8"], said["batch 1"], "tokens_per_second"
        ),
    }


def regressions(measured: dict, committed: dict) -> list:
    """-> a sentence for each ratio that has fallen too far."""
    if measured.keys() != committed.keys():
        return [f"results.json has the ratios {sorted(committed)}, measured were {sorted(measured)}"]
    return [
        f"{name}: {measured[name]['median']:.3g} is below {KEPT:.0%} of the committed {entry['median']:.3g}"
        for name, entry in committed.items()
        if measured[name]["median"] < KEPT * entry["median"]
    ]
