"""results.json -> the pictures of the README.

python tests/benchmarks/figures.py            # draws them again from results.json
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FOLDER = Path(__file__).resolve().parent
BLUE, RED, YELLOW, GREY = "#004488", "#bb5566", "#ddaa33", "#777777"
BARS = {
    "tinytorch": BLUE,
    "transformers dynamic": YELLOW,
    "transformers static": YELLOW,
    "tinytorch uncached": RED,
    "plain numpy": RED,
}


def medians(line: dict) -> tuple[list, list]:
    """length -> spread -> (lengths, medians)"""
    line = {n: entry for n, entry in line.items() if n not in ("100", "1000")}  # measured for a ratio only
    return [int(n) for n in line], [entry["median"] for entry in line.values()]


def whole_numbers(axis, ticks) -> None:
    """On a logarithmic axis: these ticks and no others."""
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axis.set_ticks([], minor=True)


def tidy(*all_axes) -> None:
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)


def draw_speedup(results: dict, path: Path) -> None:
    """What one more token costs, and how many times as fast a whole generation is."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    lines = results["context"]["small"]["ms_per_token"]
    for way, colour, label in (("uncached", RED, "everything again"), ("cached", BLUE, "with the KV cache")):
        lengths, ms = medians({n: entry for n, entry in lines[way].items() if int(n) <= 1024})
        left.plot(lengths, ms, "o-", color=colour, label=label)
    left.set(xlabel="tokens in the text so far", ylabel="ms for the next token", ylim=0)
    left.set_title("GPT-2 small's shape", fontsize=9)
    for shape, colour in (("small", BLUE), ("tiny", YELLOW)):
        rows = results["speedup"][shape]
        new = [row["new_tokens"] for row in rows]
        times = [row["cached_over_uncached"]["median"] for row in rows]
        right.plot(new, times, "o-", color=colour, label=f"{shape}, measured")
        counted = [row["predicted"] for row in rows]
        right.plot(new, counted, ":", color=colour, label=f"{shape}, operations counted")
    right.set(xlabel="tokens generated", ylabel="times as fast with the cache", xscale="log", yscale="log")
    whole_numbers(right.xaxis, new)
    whole_numbers(right.yaxis, (1, 3, 10, 30, 100, 300))
    tidy(left, right)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_comparison(results: dict, path: Path) -> None:
    """Milliseconds against context down to the floor, and tokens per second against others."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained", width_ratios=[1.3, 1, 1])
    left, *others = panels
    for shape, colour in (("small", BLUE), ("tiny", YELLOW)):
        lines = results["context"][shape]["ms_per_token"]
        left.plot(*medians(lines["uncached"]), "o--", color=colour, label=f"{shape}, everything again")
        left.plot(*medians(lines["cached"]), "o-", color=colour, label=f"{shape}, with the KV cache")
        left.axhline(
            lines["floor"]["median"], color=colour, linestyle=":", label=f"{shape}, weights read once"
        )
    left.set(xlabel="tokens in the text so far", ylabel="ms for the next token", xscale="log", yscale="log")
    whole_numbers(left.xaxis, (128, 256, 512, 1024, 2048, 4096))
    whole_numbers(left.yaxis, (0.1, 1, 10, 100, 1000, 10_000))
    tidy(left)
    left.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    for axes, shape in zip(others, ("small", "tiny"), strict=True):
        draw_rates(axes, results["generate"][shape])
        axes.set_title(f"{shape} shape", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_rates(axes, prompts: dict) -> None:
    """A bar for each contender and prompt, the short prompt above the long one, pale."""
    names = list(BARS)[::-1]
    longest = 0
    for shift, (prompt, alpha) in zip((0.2, -0.2), (("16", 1), ("512", 0.5)), strict=True):
        for place, name in enumerate(names):
            rate = 1e3 / prompts[prompt][name]["ms_per_token"]["median"]
            longest = max(longest, rate)
            axes.barh(place + shift, rate, 0.36, color=BARS[name], alpha=alpha)
            axes.text(
                rate,
                place + shift,
                f" {rate:,.3g}" if rate < 1000 else f" {rate:,.0f}",
                va="center",
                fontsize=6.5,
            )
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.set(xlabel="tokens/s (pale: prompt of 512)", xlim=(0, 1.2 * longest))
    axes.spines[["top", "right"]].set_visible(False)


def draw_all(results: dict, folder: Path) -> None:
    draw_speedup(results, folder / "speedup.png")
    draw_comparison(results, folder / "comparison.png")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    draw_all(json.loads((folder / "results.json").read_text(encoding="utf-8")), folder)
