"""`tito cache-report`: what every cache weighs, costs and spoils on a real model, measured now."""

import json
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tinytorch.caches import CACHES, new_cache
from tinytorch.generation.kv_cache import CacheBase
from tinytorch.models.transformer import LanguageModel
from tinytorch.tito.project import Project, TitoError, find_project, need_package, write_text

PIECE = 64  # tokens read at a time: with all at once a cache would not be looked at
LETTERS = 12  # of a token, at most, on average
PROSE = re.compile(r'^# %% \[markdown\]\n"""\n(.*?)\n"""$', re.MULTILINE | re.DOTALL)
FLOAT = 4  # bytes
CAPTION = (
    "bytes, time: of the plain cache's; perplexity: of the text; logit: the largest change of one; "
    "same: how often the likeliest token is the plain cache's"
)
out, notes = Console(highlight=False), Console(stderr=True)


def load_model(path: Path | None) -> tuple[LanguageModel, Any]:
    """A GGUF file or a Hugging Face folder -> (model, tokenizer); None is SmolLM2, if it is here."""
    need_package("tokenizers", "cache-report", "llm")
    need_package("gguf", "cache-report", "llm")
    from tinytorch.models.llama import Llama
    from tinytorch.models.transformer import GPT
    from tinytorch.pretrained.gguf_file import GGUFFile
    from tinytorch.pretrained.installed import installed_model
    from tinytorch.pretrained.tokenizer import ChatTokenizer

    path = path or installed_model()
    if path is None:
        raise TitoError("SmolLM2 is not installed; `make chat` fetches it, --model FILE takes another model.")
    if not path.is_dir():
        file = GGUFFile(path)
        return Llama.from_gguf(file), ChatTokenizer.from_metadata(file.metadata)
    kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    model = (GPT if kind == "gpt2" else Llama).from_pretrained(path)
    return model, ChatTokenizer.from_pretrained(path)


def course_prose(project: Project | None) -> str:
    """The words of the course's own lessons: all dev files, or the notebooks of a student's bundle."""
    if project is None:
        raise TitoError("There is no course here whose words could be read; name a text with --text.")
    parts = []
    for unit in project.unit_folders():
        if unit.dev_file.is_file():
            parts += PROSE.findall(unit.dev_file.read_text(encoding="utf-8"))
        elif unit.notebook.is_file():
            cells = json.loads(unit.notebook.read_text(encoding="utf-8"))["cells"]
            parts += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return "\n\n".join(parts)


@contextmanager
def through(model: LanguageModel, cache: CacheBase) -> Iterator[None]:
    """Inside the block the model reads and writes through this cache."""
    from tinytorch.generation.kv_cache import disable_kv_cache, enable_kv_cache

    enable_kv_cache(model, cache)
    try:
        yield
    finally:
        disable_kv_cache(model)


@dataclass
class Reader:
    """One cache, and what became of the text behind it."""

    cache: Any
    losses: list = field(default_factory=list)
    change: float = 0.0  # of a logit, at most
    same: int = 0  # positions at which the likeliest token is the plain cache's
    ms: list = field(default_factory=list)

    def read(self, model: LanguageModel, tokens: Any) -> np.ndarray:
        """(1, T) tokens -> (T, V): their logits; the milliseconds are noted if T is 1."""
        with through(model, self.cache):
            started = perf_counter()
            logits = model(tokens).data[0]
            if len(logits) == 1:
                self.ms.append(1e3 * (perf_counter() - started))
        return logits

    def judge(self, logits: np.ndarray, plain: Any, targets: np.ndarray) -> None:
        """Compare with the text itself and with what the plain cache gave."""
        largest = logits.max(axis=-1)
        total = np.exp(logits - largest[:, None]).sum(axis=-1, dtype=np.float64)
        chosen = np.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        self.losses += (np.log(total) + largest - chosen).tolist()
        self.change = max(self.change, float(np.abs(logits - plain).max()))
        self.same += int((logits.argmax(-1) == plain.argmax(-1)).sum())


def measure(model: LanguageModel, text: np.ndarray, num_tokens: int, new: int) -> dict:
    """text: (N,) tokens, N > num_tokens + new -> {name: figures} for every cache.

    All caches read the same text, a piece each in turn: num_tokens in pieces, then `new` one at a time, which
    are timed. The last figures of each are ratios within one round.
    """
    readers = {name: Reader(new_cache(name, model, num_tokens + new)) for name in CACHES}
    starts = [*range(0, num_tokens, PIECE), *range(num_tokens, num_tokens + new)]
    stops = [*starts[1:], num_tokens + new]
    steps = list(zip(starts, stops, strict=True))
    for start, stop in track(steps, "measuring", console=notes, transient=True):
        plain = None
        for reader in readers.values():
            logits = reader.read(model, text[None, start:stop])
            plain = logits if plain is None else plain
            reader.judge(logits, plain, text[start + 1 : stop + 1])
    first = readers["plain"]
    figures = {}
    for name, reader in readers.items():
        ratios = [mine / its for mine, its in zip(reader.ms, first.ms, strict=True)]
        perplexity = float(np.exp(np.mean(reader.losses)))
        figures[name] = {
            "bytes": reader.cache.nbytes,
            "bytes_over_plain": reader.cache.nbytes / first.cache.nbytes,
            "ms_per_token": median(reader.ms),
            "ms_over_plain": median(ratios),
            "perplexity": perplexity,
            "perplexity_over_plain": perplexity / float(np.exp(np.mean(first.losses))),
            "largest_logit_change": reader.change,
            "same_choice": reader.same / len(reader.losses),
        }
    return figures


def shards(model: Any, num_bytes: int, devices: int) -> dict:
    """On paper: {way to split: (bytes of cache on the fullest device, bytes exchanged for one token)}.

    heads: each device keeps some key heads of every layer (Shoeybi et al. 2019, arXiv:1909.08053); two sums
        over all devices a layer, C numbers each, 2 (d - 1) / d of which each device sends.
    layers: each keeps some layers; a token's C numbers go from one to the next.
    tokens: each keeps some positions; per layer the query goes to all others, and from each comes back a
        weighted mean with the largest score and the sum of each head.
    """
    from tinytorch.generation.kv_cache import cache_sizes

    sizes, attention = cache_sizes(model), model.blocks[0].attention
    L, H, C = sizes["num_layers"], sizes["num_heads"], model.embed_dim
    queries, d = attention.num_heads * attention.head_dim, devices
    return {
        "heads": (num_bytes * -(-H // d) // H, round(2 * L * 2 * (d - 1) / d * C * FLOAT)),
        "layers": (num_bytes * -(-L // d) // L, (d - 1) * C * FLOAT),
        "tokens": (-(-num_bytes // d), L * (d - 1) * 2 * (queries + attention.num_heads) * FLOAT),
    }


def figures_table(report: dict) -> Table:
    title = f"{report['model']}: {report['tokens']:,} tokens read, then {report['new']} one at a time"
    table = Table(title=title, title_justify="left", caption=CAPTION, caption_justify="left")
    for heading in ("cache", "MB", "bytes", "ms", "time", "perplexity", "logit", "same"):
        table.add_column(heading, justify="left" if heading == "cache" else "right", no_wrap=True)
    for name, row in report["caches"].items():
        table.add_row(
            name,
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['bytes_over_plain']:.3f}",
            f"{row['ms_per_token']:.1f}",
            f"{row['ms_over_plain']:.2f}",
            f"{row['perplexity']:.3f}",
            f"{row['largest_logit_change']:.2g}",
            f"{row['same_choice']:.1%}",
        )
    return table


def shards_table(model: Any, num_bytes: int, devices: tuple[int, ...]) -> Table:
    table = Table(title="The plain cache on several devices, on paper", title_justify="left")
    table.add_column("devices", justify="right")
    for way in shards(model, num_bytes, 1):
        table.add_column(f"by {way}: MB each", justify="right")
        table.add_column("KB a token", justify="right")
    for d in devices:
        cells = [
            text
            for held, sent in shards(model, num_bytes, d).values()
            for text in (f"{held / 1e6:.1f}", f"{sent / 1e3:.1f}")
        ]
        table.add_row(str(d), *cells)
    return table


def draw(report: dict, path: Path) -> None:
    """Bytes against perplexity, the time of a token beside each cache."""
    need_package("matplotlib", "cache-report --picture")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    labels: dict[tuple, list] = {}
    for name, row in report["caches"].items():
        place = round(row["bytes_over_plain"], 2), round(row["perplexity_over_plain"], 4)
        labels.setdefault(place, []).append(f"{name}, time × {row['ms_over_plain']:.2f}")
    for place, names in labels.items():
        axes.plot(*place, "o", color="#004488")
        axes.annotate(
            "\n".join(names),
            place,
            xytext=(3, 5),
            textcoords="offset points",
            rotation=35,
            fontsize=8,
        )
    axes.set(xlabel="bytes, of the plain cache's", ylabel="perplexity, of the plain cache's", xlim=(0, 1.35))
    axes.margins(y=0.4)
    axes.set_title(f"{report['model']}, {report['tokens']:,} tokens", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


@click.command(name="cache-report")
@click.option(
    "--model",
    "path",
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE",
    help="A GGUF file, or a folder in Hugging Face's layout; by default SmolLM2, if it is installed.",
)
@click.option("--tokens", type=click.IntRange(1), default=2000, show_default=True, help="Length of the text.")
@click.option(
    "--new", type=click.IntRange(1), default=48, show_default=True, help="Tokens after it, which are timed."
)
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What is read; by default the words of the course's own lessons.",
)
@click.option(
    "--devices",
    type=click.IntRange(1),
    multiple=True,
    default=(1, 2, 4, 8),
    show_default=True,
    help="For the table of what a split over devices would mean.",
)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="A PNG of the trade-off.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="The figures as JSON.")
def command(
    path: Path | None,
    tokens: Any,
    new: int,
    text: Path | None,
    devices: Any,
    picture: Path | None,
    output: Path | None,
) -> None:
    """Measure the bytes, the speed and the quality of every cache on a real model.

    All caches read the same text, a piece each in turn. Takes some two minutes with SmolLM2.
    """
    try:
        model, tokenizer = load_model(path)
        if tokens + new > model.max_seq_len:
            raise TitoError(f"{tokens} and {new} tokens are too many, the model takes {model.max_seq_len}.")
        words = text.read_text(encoding="utf-8") if text else course_prose(find_project())
        words = words[: LETTERS * (tokens + new + 1)]  # to encode no more than is read
        ids = np.array(tokenizer.encode(words)[: tokens + new + 1])
        if len(ids) <= tokens + new:
            raise TitoError(f"The text has {len(ids):,} tokens, {tokens + new + 1:,} are needed; see --text.")
        report = {
            "model": Path(path).name if path else "SmolLM2-135M-Instruct",
            "tokens": tokens,
            "new": new,
            "machine": {"processor": platform.machine(), "numpy": np.__version__},
            "caches": measure(model, ids, tokens, new),
        }
    except (ValueError, ModuleNotFoundError) as error:
        raise TitoError(f"{error}.") from error
    out.print(figures_table(report))
    out.print(shards_table(model, report["caches"]["plain"]["bytes"], devices))
    out.print("[dim]computed from the sizes, not measured: one machine took part[/]")
    if picture:
        draw(report, picture)
    if output:
        write_text(output, json.dumps(report, indent=1) + "\n")
