"""Measure what the KV cache gains, and write results.json and speedup.png beside this file.

    python tests/benchmarks/run.py            # transformers beside it, if the [oracle] extra is installed
    python tests/benchmarks/run.py --quick    # fewer repeats, nothing written

Ratios are taken inside one run, the things compared run in turn (A B A B), and each figure is a median.
Single times are of one machine on one day.
"""

import json
import os
import platform
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import click
import numpy as np

from tinytorch.generation.kv_cache import disable_kv_cache, enable_kv_cache, generate_with_cache
from tinytorch.models.transformer import GPT

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path.insert(0, str(ROOT / "milestones" / "05_2017_transformer"))
SMALL = {"vocab_size": 50_257, "embed_dim": 768, "num_layers": 12, "num_heads": 12}  # GPT-2 small
LENGTHS = (10, 25, 50, 100, 150, 200)


def in_turn(ways: dict, repeats: int) -> dict:
    """{name: function} -> {name: median seconds}: once each to warm up, then all in turn, `repeats` times."""
    seconds = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():
            started = perf_counter()
            run()
            if turn:
                seconds[name].append(perf_counter() - started)
    return {name: float(np.median(s)) for name, s in seconds.items()}


def chat_generation(repeats: int) -> dict:
    """The shipped chat model: a whole generation of n tokens, from its shortest prompt, both ways."""
    from chat import SHIPPED, load_chat

    model, tokenizer, _ = load_chat(SHIPPED)
    prompt = np.array([[tokenizer.special_tokens["<|user|>"]]])
    rows = []
    for new in LENGTHS:
        ways = {
            "uncached": lambda new=new: model.generate(prompt, new, temperature=0),
            "cached": lambda new=new: generate_with_cache(model, prompt, new, temperature=0),
        }
        same = np.array_equal(*(run() for run in ways.values()))
        seconds = in_turn(ways, repeats)
        rows.append(
            {
                "new_tokens": new,
                "same_tokens": bool(same),
                "tokens_per_second": {name: round(new / s, 1) for name, s in seconds.items()},
                "cached_over_uncached": round(seconds["uncached"] / seconds["cached"], 2),
                "tokens_read_ratio": round((new + 1) / 2, 1),
            }
        )
    return {"sizes": {k: getattr(model, k) for k in ("vocab_size", "embed_dim", "num_layers")}, "rows": rows}


def filled(model, length: int):
    """A model with its cache on and `length` tokens in it -> a function that decodes one token there."""
    cache = enable_kv_cache(model)
    text = np.random.default_rng(0).integers(0, model.vocab_size, (1, length))
    for start in range(0, length, 128):
        model.next_logits(text[:, start : start + 128])

    def decode():
        cache.truncate(length)
        model.next_logits(text[:, :1])

    return decode


def small_decode(repeats: int) -> dict:
    """A model of GPT-2 small's shape: one token at 100 and at 1,000 cached tokens."""
    ways = {}
    for length in (100, 1000):
        ways[str(length)] = filled(GPT(**SMALL, max_seq_len=1024, seed=0), length)
    ms = {length: 1e3 * s for length, s in in_turn(ways, repeats).items()}
    return {
        "ms_per_token": {k: round(v, 2) for k, v in ms.items()},
        "1000_over_100": round(ms["1000"] / ms["100"], 3),
    }


def against_transformers(repeats: int, prompt_tokens: int = 16, new_tokens: int = 32) -> dict:
    """The same random weights here and in transformers' GPT-2, greedy, same threads: tokens per second."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(os.cpu_count())
    sys.path.insert(0, str(ROOT / "tests" / "oracles"))
    from gpt2_twin import twin_of

    model = GPT(**SMALL, max_seq_len=1024, seed=0)
    twin = twin_of(model)
    prompt = np.random.default_rng(0).integers(0, model.vocab_size, (1, prompt_tokens))
    tensor = torch.tensor(prompt)
    options = {"do_sample": False, "use_cache": True, "pad_token_id": 0, "min_new_tokens": new_tokens}

    def theirs():
        with torch.no_grad():
            mask = torch.ones_like(tensor)
            return twin.generate(tensor, attention_mask=mask, max_new_tokens=new_tokens, **options).numpy()

    ways = {
        "tinytorch": lambda: generate_with_cache(model, prompt, new_tokens, temperature=0),
        "transformers": theirs,
    }
    same = np.array_equal(*(run() for run in ways.values()))
    rate = {name: round(new_tokens / s, 2) for name, s in in_turn(ways, repeats).items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "same_tokens": bool(same),
        "tokens_per_second": rate,
        "ours_over_theirs": round(rate["tinytorch"] / rate["transformers"], 3),
        "threads": os.cpu_count(),
        **versions,
    }


def import_seconds(repeats: int) -> dict:
    """`import tinytorch` in a new interpreter that has NumPy loaded."""
    code = "import numpy, time; t = time.perf_counter(); import tinytorch; print(time.perf_counter() - t)"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(repeats)
    ]
    return {"seconds": round(float(np.median([float(run.stdout) for run in runs])), 5)}


def ms_per_token(repeats: int) -> dict:
    """The shape of the chat model with random weights: one more token after n, both ways, in milliseconds."""
    model = GPT(768, 128, 4, 4, max_seq_len=1024, seed=0)
    text = np.random.default_rng(0).integers(0, 768, (1, 1024))
    rows = []
    for length in (16, 64, 128, 256, 512, 768, 1000):
        plain = in_turn({"s": lambda n=length: model.next_logits(text[:, :n])}, repeats)["s"]
        cached = in_turn({"s": filled(model, length - 1)}, 4 * repeats)["s"]
        disable_kv_cache(model)
        rows.append({"length": length, "uncached": round(1e3 * plain, 3), "cached": round(1e3 * cached, 3)})
    return {"rows": rows}


def machine() -> dict:
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def draw(results: dict, path: Path) -> None:
    """The picture of the README: what one more token costs, and how much faster a whole generation is."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    rows = results["ms_per_token"]["rows"]
    lengths = [row["length"] for row in rows]
    left.plot(lengths, [row["uncached"] for row in rows], "o-", color="#bb5566", label="everything again")
    left.plot(lengths, [row["cached"] for row in rows], "o-", color="#004488", label="with the KV cache")
    left.set(xlabel="tokens in the text so far", ylabel="ms for the next token", ylim=0)
    left.legend(frameon=False)
    rows = results["chat_generation"]["rows"]
    new = [row["new_tokens"] for row in rows]
    right.plot(new, [row["cached_over_uncached"] for row in rows], "o-", color="#004488")
    right.set(xlabel="tokens generated", ylabel="times as fast with the cache", ylim=0, xlim=0)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Fewer repeats; nothing is written.")
def main(quick):
    repeats = 3 if quick else 7
    results = {"machine": machine()}
    parts = [import_seconds, chat_generation, ms_per_token, small_decode]
    if find_spec("torch") and find_spec("transformers"):
        parts.append(against_transformers)
    else:
        click.echo("transformers is left out; to have it beside ours: pip install -e '.[oracle]'", err=True)
    for part in parts:
        click.echo(f"measuring {part.__name__} ...", err=True)
        results[part.__name__] = part(repeats)
    text = json.dumps(results, indent=1)
    click.echo(text)
    if not quick:
        (FOLDER / "results.json").write_text(text + "\n", encoding="utf-8")
        draw(results, FOLDER / "speedup.png")


if __name__ == "__main__":
    main()
