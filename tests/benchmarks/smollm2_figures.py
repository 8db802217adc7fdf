"""What the cache does while SmolLM2 reads and writes -> cache.png, from a run of the real model.

python tests/benchmarks/smollm2_figures.py [FILE.png]

Needs the extras [dev] and [llm], the model, and half a minute. The times are those of the machine: on one
thread they do not suffer from what else is running as much as on all.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np

from tinytorch.core.attention import attention_weights
from tinytorch.generation.kv_cache import disable_kv_cache, enable_kv_cache
from tinytorch.models.llama import Llama
from tinytorch.pretrained.gguf_file import GGUFFile
from tinytorch.pretrained.tokenizer import ChatTokenizer
from tinytorch.profiling.profiler import Profiler

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1] / "milestones" / "06_2024_llm"))
from model_file import installed_model  # noqa: E402

BLUE, RED = "#004488", "#bb5566"
SENTENCE = "The cat did not cross the street because it was too tired."
LAYER, HEAD = 13, 8  # a head in which "it" finds its noun
NEW = 0, 12, 36  # tokens written when the cache is looked at
LENGTHS = 8, 32, 64, 128, 192, 256  # tokens in the text when the next one is timed


def weights_of_head(model, tokens: np.ndarray) -> np.ndarray:
    """(1, T) -> (T, T): what share each token takes of each, in one query head of one layer."""
    caught, attention = [], model.blocks[LAYER].attention

    def catch(inner, x):
        caught.append(inner(x))
        return caught[-1]

    attention.wrap("project", catch)
    model.hidden_states(tokens)
    attention.unwrap("project", catch)
    query, key, _ = (x.data[0] for x in caught[0])
    group = attention.num_heads // attention.num_kv_heads
    return attention_weights(query[HEAD // group, HEAD % group], key[HEAD // group], causal=True).data


def draw_attention(axes, weights: np.ndarray, words: list[str]) -> None:
    image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(words)), words, rotation=90, fontsize=7)
    axes.set_yticks(range(len(words)), words, fontsize=7)
    axes.set_xlabel("key: who is looked at", fontsize=8)
    axes.set_ylabel("query: who looks", fontsize=8)
    axes.set_title(f"Attention weights, layer {LAYER}, query head {HEAD}", fontsize=9)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.6)
    bar.ax.tick_params(labelsize=7)


def draw_filling(panels, model, prompt: np.ndarray) -> list[int]:
    """Panels: one key head of one layer after the prompt and after some tokens -> those that were written."""
    cache, written = enable_kv_cache(model), []
    logits = model.next_logits(prompt)
    head = HEAD // (model.num_heads // model.num_kv_heads)
    for panel, new in zip(panels, NEW, strict=True):
        while len(written) < new:
            written.append(int(logits[0].argmax()))
            logits = model.next_logits([written[-1:]])
        keys = cache.caches[LAYER][0].data[0, head, : prompt.shape[1] + NEW[-1] + 4].copy()
        keys[cache.seq_pos :] = np.nan
        panel.imshow(keys.T, cmap="RdBu", aspect="auto", vmin=-5, vmax=5, interpolation="nearest")
        panel.set_facecolor("#eeeeee")
        panel.set_yticks((0, 32, 63))
        panel.tick_params(labelsize=7)
        panel.set_title(
            f"{cache.seq_pos} tokens: the prompt" + (f" and {new} written" if new else ""), fontsize=8
        )
    panels[0].set_title(
        f"Keys in the cache, layer {LAYER}, key head {head}\n{panels[0].get_title()}", fontsize=9
    )
    panels[1].set_ylabel("entry of the key", fontsize=8)
    panels[-1].set_xlabel("position (grey: still empty)", fontsize=8)
    disable_kv_cache(model)
    return written


def ms_per_token(model, length: int) -> tuple[float, float]:
    """(uncached, cached): milliseconds to read one more token when the text is `length` tokens long."""
    text, timer = np.random.default_rng(0).integers(0, model.vocab_size, (1, length)), Profiler(repeats=5)
    uncached = timer.time(model.next_logits, text).median
    cache = enable_kv_cache(model)
    model.hidden_states(text[:, :-1])

    def step():
        model.next_logits(text[:, -1:])
        cache.truncate(length - 1)

    cached = timer.time(step).median
    disable_kv_cache(model)
    return 1e3 * uncached, 1e3 * cached


def draw_times(axes, times: np.ndarray) -> None:
    axes.plot(LENGTHS, times[:, 0], "o-", color=RED, label="everything again")
    axes.plot(LENGTHS, times[:, 1], "o-", color=BLUE, label="with the KV cache")
    axes.set_xlabel("tokens in the text so far", fontsize=8)
    axes.set_ylabel("ms for the next token", fontsize=8)
    axes.set_ylim(0)
    axes.tick_params(labelsize=7)
    axes.set_title("Time for one more token", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def main(path: Path) -> None:
    file = installed_model()
    if file is None:
        sys.exit("smollm2_figures.py: the model is not installed; `make chat` fetches it")
    model, tokenizer = Llama.from_gguf(file), ChatTokenizer.from_metadata(GGUFFile(file).metadata)
    tokens = np.array([tokenizer.encode(SENTENCE)])
    words = [tokenizer.decode([token]).strip() for token in tokens[0].tolist()]
    figure = plt.figure(figsize=(13, 4.2), layout="constrained")
    grid = figure.add_gridspec(3, 3, width_ratios=[1.25, 1.2, 1])
    draw_attention(figure.add_subplot(grid[:, 0]), weights_of_head(model, tokens), words)
    panels = [figure.add_subplot(grid[row, 1]) for row in range(3)]
    written = draw_filling(panels, model, tokens)
    times = np.array([ms_per_token(model, length) for length in LENGTHS])
    draw_times(figure.add_subplot(grid[:, 2]), times)
    figure.savefig(path, dpi=110)
    print(f"{SENTENCE!r} goes on {tokenizer.decode(written)!r}")
    for length, (uncached, cached) in zip(LENGTHS, times, strict=True):
        print(f"{length:4} tokens: {uncached:7.1f} ms uncached, {cached:6.1f} ms cached")
    print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / "cache.png")
