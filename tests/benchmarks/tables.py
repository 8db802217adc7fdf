"""What was measured, as tables for the terminal."""

from rich.table import Table

from counts import WHERE_THEY_PART


def said(entry: dict | None) -> str:
    """A spread -> its median."""
    return "" if entry is None else f"{entry['median']:.4g}"


def table_of(title: str, columns: tuple, rows: list) -> Table:
    """rows: lists of strings, the first of which names the row."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*row)
    return table


def generate_tables(part: dict):
    columns = ("contender", "first token, ms", "ms per token", "over ours", "tokens/s", "same tokens")
    for shape, prompts in part.items():
        for prompt, contenders in prompts.items():
            rows = []
            for name, row in contenders.items():
                figures = [row.get(k) for k in ("prefill_ms", "ms_per_token", "ms_per_token_over_ours")]
                same = {True: "yes", False: "NO", None: ""}[row.get("same_tokens")]
                rows.append([name, *map(said, figures), said(row.get("tokens_per_second")), same])
            yield table_of(f"{shape} shape, prompt of {prompt}, greedy", columns, rows)


def context_tables(part: dict):
    for shape, lines in part.items():
        ms = lines["ms_per_token"]
        rows = [[n, said(entry), said(ms["uncached"].get(n))] for n, entry in ms["cached"].items()]
        rows += [["weights read once", said(ms["floor"]), ""], ["bare products", said(ms["products"]), ""]]
        columns = ("tokens so far", "cached, ms per token", "uncached")
        yield table_of(f"{shape} shape, one more token", columns, rows)


def batch_tables(part: dict):
    rates, over = part["tokens_per_second"], part["over_batch_1"]
    rows = [[n, said(rate), said(over.get(n))] for n, rate in rates.items()]
    yield table_of("small shape, context 128, rows together", ("rows", "tokens/s", "over 1 row"), rows)


def speedup_tables(part: dict):
    columns = ("new tokens", "cached over uncached", "operations predict", "rounds")
    for shape, lengths in part.items():
        rows = [
            [
                str(r["new_tokens"]),
                said(s := r["cached_over_uncached"]),
                f"{r['predicted']:.4g}",
                str(s["rounds"]),
            ]
            for r in lengths
        ]
        yield table_of(f"{shape} shape, a whole generation from a 1-token prompt", columns, rows)
    yield WHERE_THEY_PART


def plain_tables(part: dict):
    """For a part of a few figures: name, figure; one level of names within names."""
    rows = []
    for name, entry in part.items():
        if not isinstance(entry, dict) or "median" in entry:
            entry = {"": entry}
        for inner, value in entry.items():
            rows.append([f"{name} {inner}", said(value) if isinstance(value, dict) else f"{value:.3g}"])
    yield table_of("", ("figure", "measured"), rows)


TABLES = {
    "generate": generate_tables,
    "context": context_tables,
    "batch": batch_tables,
    "speedup": speedup_tables,
}


def tables(name: str, part: dict):
    """Yields what the terminal shows of one part."""
    yield from TABLES.get(name, plain_tables)(part)
