"""What the figures should reach, and the table that says whether they do."""

from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Goal:
    """A figure, where it stands in results.json, and its bound: at least, or at most."""

    figure: str
    path: tuple
    at_least: float | None = None
    at_most: float | None = None

    def find(self, results: dict) -> dict | None:
        """-> its median, low, high (a plain number is all three); None if it was not measured."""
        entry = results
        for key in self.path:
            if key not in entry:
                return None
            entry = entry[key]
        if isinstance(entry, dict):
            return entry
        return {"median": entry, "low": entry, "high": entry, "rounds": 1}

    def met(self, entry: dict) -> bool:
        if self.at_least is not None:
            return entry["median"] >= self.at_least
        return entry["median"] <= self.at_most

    @property
    def bound(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return f"at most {self.at_most:g}"


def over_transformers(shape: str, prompt: int, cache: str, bound: float) -> Goal:
    """Their milliseconds per token over ours."""
    name = f"transformers {cache}"
    path = ("generate", shape, str(prompt), name, "ms_per_token_over_ours")
    return Goal(f"{shape}, prompt {prompt}: {name} / ours, ms per token", path, at_least=bound)


GOALS = [
    *(over_transformers("small", p, cache, 1.4) for p in (16, 512) for cache in ("dynamic", "static")),
    *(over_transformers("tiny", p, cache, 5) for p in (16, 512) for cache in ("dynamic", "static")),
    *(
        Goal(
            f"small, prefill of 512: transformers {cache} / ours",
            ("generate", "small", "512", f"transformers {cache}", "prefill_over_ours"),
            at_least=1,
        )
        for cache in ("dynamic", "static")
    ),
    Goal(
        "small, context 128: ms per token / floor",
        ("context", "small", "cached_at_128_over_floor"),
        at_most=1.25,
    ),
    Goal(
        "small: decode at context 1,000 / at 100",
        ("context", "small", "cached_at_1000_over_100"),
        at_most=1.25,
    ),
    Goal("small, tokens/s: batch 8 / batch 1", ("batch", "over_batch_1", "8"), at_least=3),
    Goal("small, tokens/s: batch 2 / batch 1", ("batch", "over_batch_1", "2"), at_least=1.3),
    Goal("small: peak memory / weights and cache", ("memory", "peak_over_needed"), at_most=1.25),
    Goal("chat, training: ours / PyTorch, tokens/s", ("training", "ours_over_pytorch"), at_least=0.5),
    *(
        Goal(
            f"{shape}: cached logits, difference from {name}",
            ("logits", shape, f"cached against {name}"),
            None,
            1e-4,
        )
        for shape in ("tiny", "small")
        for name in ("tinytorch uncached", "transformers dynamic")
    ),
]


CHAT_GOALS = [
    Goal(
        "SmolLM2: transformers / ours, ms per token",
        ("generate", "transformers", "ms_per_token_over_ours"),
        at_least=1.5,
    ),
    Goal("SmolLM2, 200 tokens: cached / uncached, tokens/s", ("cache", "cached_over_uncached"), at_least=5),
    Goal("SmolLM2: seconds to load", ("load", "load_seconds"), at_most=6),
    Goal("SmolLM2: peak memory of the process, GB", ("load", "peak_gb"), at_most=1.1),
]


CACHE_FILES = ("caches", "window", "quantized", "paged", "batching")
CACHE_GOALS = [  # in {name: what stands in name.json}
    Goal(
        "int8: bytes of keys and values / plain, 2,000 tokens and more",
        ("caches", "caches", "int8", "bytes_over_plain"),
        at_most=0.27,
    ),
    Goal("int4: the same", ("caches", "caches", "int4", "bytes_over_plain"), at_most=0.16),
    Goal(
        "window, 10,000 tokens written: ms per token at the end / when it was just full",
        ("window", "write", "last_over_first"),
        at_most=1.1,
    ),
    Goal(
        "50 conversations, one prompt of 500 tokens: bytes of plain caches / blocks held",
        ("paged", "conversations", "bytes", "plain_over_held"),
        at_least=5,
    ),
    Goal(
        "the same: seconds to read, plain / paged",
        ("paged", "conversations", "prefill_seconds", "plain_over_pool"),
        at_least=5,
    ),
    Goal(
        "16 mixed requests, tokens/s: in one batch / one at a time",
        ("batching", "rows", "batch of 16", "over_one_at_a_time"),
        at_least=3,
    ),
]


def cache_lines(report: dict) -> list[str]:
    """The README's table of caches: a line for each, from `tito cache-report --output`."""
    lines = []
    for name, row in report["caches"].items():
        figures = (f"{row['bytes_over_plain']:.3f}", f"{row['ms_over_plain']:.2f}")
        quality = (f"{row['perplexity_over_plain']:.4f}", f"{row['largest_logit_change']:.2g}")
        cells = f"{row['bytes'] / 1e6:.1f}", *figures, *quality, f"{row['same_choice']:.1%}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def goal_lines(results: dict, goals: list[Goal]) -> list[str]:
    """The README's table: a line for each goal."""
    lines = []
    for goal in goals:
        entry = goal.find(results)
        measured, low, high = (f"{entry[key]:.3g}" for key in ("median", "low", "high"))
        lines.append(f"| {goal.figure} | {goal.bound} | {measured} | {low} to {high} |")
    return lines


def goal_table(results: dict, goals: list[Goal]) -> Table:
    """The goals whose figures were measured."""
    table = Table(title="What the figures should reach")
    for column in ("figure", "bound", "measured", "lowest - highest", "met"):
        table.add_column(
            column, justify="left" if column == "figure" else "right", no_wrap=column == "figure"
        )
    for goal in goals:
        entry = goal.find(results)
        if entry is not None:
            measured, low, high = (f"{entry[key]:.3g}" for key in ("median", "low", "high"))
            table.add_row(
                goal.figure, goal.bound, measured, f"{low} - {high}", "yes" if goal.met(entry) else "no"
            )
    return table
