"""Where the time of a pass goes: py-spy samples the models while they decode and read -> shares.json.

Needs py-spy on the path (`pip install py-spy`). `--seconds` per column, `--threads` for OpenBLAS.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter

HERE = Path(__file__).parent
COLUMNS = {  # name: (shape, tokens in the cache, tokens read at once)
    "4 layers, 128 wide: decode": ("tiny", 100, 1),
    "GPT-2 small's shape: decode after 100": ("small", 100, 1),
    "the same after 1,000": ("small", 1000, 1),
    "the same: prefill of 512": ("small", 0, 512),
}
PARTS = ("products with the weights", "attention", "norms", "GELU", "biases, and shapes of rows", "the rest")
RATE = 200  # samples per second


def watched(shape: str, seen: int, new: int, seconds: float) -> None:
    """Reads `new` tokens after `seen` cached ones, again and again; only samples in here count."""
    from ours import Cached
    from shapes import text

    contender = Cached(shape)
    tokens = text(shape, new)
    contender.fill(max(seen, 1), 1)

    def sampled():
        stop = perf_counter() + seconds
        while perf_counter() < stop:
            contender.cache.truncate(seen)
            contender.model.next_logits(tokens)

    contender.cache.truncate(seen)
    contender.model.next_logits(tokens)
    sampled()


def part_of(stack: list, source: dict) -> str:
    """Frames "function (file:line)", the innermost last -> which of PARTS the sample belongs to."""
    ours = [frame for frame in stack if "tinytorch/" in frame]
    function, _, place = ours[-1].partition(" (")
    file, _, line = place.rstrip(")").rpartition(":")
    name = Path(file).name
    function = function.rpartition(".")[2]
    if name == "layers.py" and function in ("multiply_rows", "linear", "as_rows"):
        text = source.setdefault(file, Path(file).read_text().splitlines())[int(line) - 1]
        return "products with the weights" if "dot(" in text else "biases, and shapes of rows"
    if function in ("layer_norm", "mean_square", "column"):
        return "norms"
    if function == "gelu":
        return "GELU"
    values = function == "apply" and "__matmul__" in ours[-2]  # weights times values
    if values or function in ("weigh_keys", "softmax", "attend_in_blocks"):
        return "attention"
    return "the rest"


def shares(column: tuple, seconds: float, threads: int) -> dict:
    """-> for each of PARTS its share of the samples, and how many samples there were."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stacks"
        program = [sys.executable, __file__, "--work", json.dumps(column), "--seconds", str(seconds)]
        record = ["py-spy", "record", "--format", "raw", "--full-filenames", "--rate", str(RATE)]
        subprocess.run(
            [*record, "--output", out, "--", *program], env=environment, check=True, capture_output=True
        )
        counts, source = Counter(), {}
        for line in out.read_text().splitlines():
            stack, _, number = line.rpartition(" ")
            frames = stack.split(";")
            if any("sampled (" in frame for frame in frames) and "tinytorch/" in stack:
                counts[part_of(frames, source)] += int(number)
    total = counts.total()
    return {part: round(counts[part] / total, 3) for part in PARTS} | {"samples": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return watched(*options.work, options.seconds)
    result = {name: shares(column, options.seconds, options.threads) for name, column in COLUMNS.items()}
    (HERE / "shares.json").write_text(json.dumps({"threads": options.threads, **result}, indent=1) + "\n")
    for part in (*PARTS, "samples"):
        print(f"{part:28}", *(f"{column[part]:>8}" for column in result.values()))


if __name__ == "__main__":
    main()
