"""Chat with a small GPT that this course trained, with and without the KV cache of module 15.

Vaswani et al. 2017 gave it its architecture, this repository gave it everything else. It knows the
few hundred exchanges of data/README.md and little more.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the package beside which this lies
try:
    from chat import FOLDER, SHIPPED, Chat, exact_matches, load_chat, run_conversation, save_chat
    from dialogues import load_dialogues
    from train_chat import SETTINGS, train

    from tinytorch.caches import CACHES, compared, kinds, new_cache
except ModuleNotFoundError as error:
    if not str(error.name).startswith("tinytorch."):
        raise
    sys.exit(f"{error.name} is not there yet: complete its module first (`tito module status` says which).")

DEMO = ("Hello!", "What is a KV cache?", "Tell me a story about a dragon.")
LONG_ANSWER = 200  # tokens, for the comparison that closes the demo
out = Console(highlight=False)


def rate(tokens: int, seconds: float) -> str:
    """tokens per second, for a table."""
    return f"{tokens / seconds:,.0f}" if tokens else "-"


def say(chat: Chat, question: str, **sampling) -> None:
    """Ask and print the answer as it comes; Ctrl-C stops the answer and not the program."""
    dropped = chat.make_room(chat.turn_length(question))
    if dropped:
        longest = chat.model.max_seq_len
        out.print(f"[dim](the context of {longest} tokens is full: the oldest {dropped} turns are forgotten)")
    try:
        for text in chat.ask(question, **sampling):
            out.print(text, end="", markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        out.print(" [dim](stopped)", end="")
    out.print()


def compare(model, tokenizer, questions, title: str, cache: str = "plain", **options) -> float:
    """One conversation without and with the cache; print what each way cost -> how many times as fast."""
    ways = {
        way: run_conversation(model, tokenizer, questions, way, temperature=0, **options)
        for way in (None, cache)
    }
    table = Table(title=title, title_justify="left")
    for heading in ("KV cache", "prompt", "prefill ms", "new tokens", "decode tokens/s", "seconds"):
        table.add_column(heading, justify="left" if heading == "KV cache" else "right", no_wrap=True)
    totals = {}
    for way, answers in ways.items():
        prefill, decode = sum(a.prefill for a in answers), sum(a.decode for a in answers)
        totals[way] = prefill + decode
        table.add_row(
            way or "none",
            str(sum(a.prompt_tokens for a in answers)),
            f"{1e3 * prefill:,.1f}",
            str(sum(len(a.tokens) for a in answers)),
            rate(sum(a.decoded for a in answers), decode),
            f"{totals[way]:.3f}",
        )
    out.print(table)
    said = compared(cache, [a.tokens for a in ways[cache]] == [a.tokens for a in ways[None]])
    factor = totals[None] / totals[cache]
    out.print(f"{said[0].upper()}{said[1:]}, {factor:.1f} times as fast with it.\n")
    return factor


def describe_cache(model, name: str = "plain") -> str:
    """One line on the size of the model's cache."""
    cache = new_cache(name, model)
    per_token, total = cache.get_memory_usage()["bytes_per_token"], cache.nbytes / 1e6
    return f"The {name} cache: {per_token:,} bytes a token, {total:.2f} MB for {model.max_seq_len} tokens."


def evaluate(model, tokenizer) -> dict:
    """Print how many questions of each split are answered to the letter -> {split: (right, all)}."""
    titles = {
        "train": "questions it was trained on",
        "heldout_paraphrase": "held out: other wordings of those",
        "heldout_combination": "held out: unseen combinations",
    }
    counts = {}
    for split, title in titles.items():
        right, total = counts[split] = exact_matches(model, tokenizer, load_dialogues(split))
        out.print(f"{title + ':':36}{right:4} of {total:4} answered to the letter ({right / total:.1%})")
    return counts


def demo(model, tokenizer) -> None:
    """Three questions in one conversation, without the cache and with it, and a long answer both ways."""
    for cache in (None, "plain"):
        out.rule(f"[bold]{'with' if cache else 'without'} the KV cache", align="left")
        chat = Chat(model, tokenizer, cache)
        for question in DEMO:
            out.print(f"[bold]you[/]    {question}\n[bold]model[/]  ", end="")
            say(chat, question, temperature=0)
            tokens, seconds = len(chat.answer.tokens), chat.answer.prefill + chat.answer.decode
            out.print(f"[dim]       {tokens} tokens, {rate(tokens, seconds)} tokens/s")
        chat.close()
        out.print()
    compare(model, tokenizer, DEMO, "The conversation above")
    title = f"{LONG_ANSWER} tokens in one answer (it runs on past its end)"
    compare(model, tokenizer, DEMO[-1:], title, max_new_tokens=LONG_ANSWER, stop=False)
    out.print(describe_cache(model) + "\n")
    evaluate(model, tokenizer)


def converse(model, tokenizer, cache: str | None, **sampling) -> None:
    """Talk until the user has had enough, then compare both ways on what was asked."""
    out.print(f"Ask something; an empty line ends. {f'With the {cache}' if cache else 'Without a'} KV cache.")
    chat, asked = Chat(model, tokenizer, cache), []
    while True:
        try:
            question = out.input("[bold]you[/]    ").strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            break
        if not question:
            break
        out.print("[bold]model[/]  ", end="")
        try:
            say(chat, question, **sampling)
            asked.append(question)
        except ValueError as error:
            out.print(f"[dim]({error})")
    chat.close()
    if asked:
        compare(model, tokenizer, asked, "This conversation again, greedily", cache or "plain")
        out.print(describe_cache(model, cache or "plain"))


def train_and_save(weights: Path, steps: int, seed: int) -> None:
    """Train with a progress bar, evaluate, save."""
    settings = {**SETTINGS, "steps": steps, "seed": seed}
    data = hashlib.sha256(json.dumps(load_dialogues("train")).encode()).hexdigest()
    key = hashlib.sha256(json.dumps([settings, data], sort_keys=True).encode()).hexdigest()[:12]
    checkpoint = weights.with_name(f"{weights.stem}.checkpoint-{key}.npz")
    losses = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=out) as bar:
        task = bar.add_task("training", total=steps)

        def show(step, loss):
            losses.append(loss)
            recent = losses[-20:]
            bar.update(task, completed=step, description=f"training, loss {sum(recent) / len(recent):.3f}")

        weights.parent.mkdir(parents=True, exist_ok=True)
        try:
            model, tokenizer = train(settings, checkpoint, show)
        except KeyboardInterrupt:
            raise click.ClickException(
                f"stopped; the same command goes on from {checkpoint.name}, delete that file to begin again"
            ) from None
    loss = sum(losses[-50:]) / max(1, len(losses[-50:]))
    facts = {"settings": settings, "data_sha256": data, "loss": round(loss, 4) if losses else None}
    facts["made_by"] = f"vaswani_chatgpt.py --train --steps {steps} --seed {seed}"
    save_chat(weights, model, tokenizer, facts)
    checkpoint.unlink(missing_ok=True)
    out.print(f"Saved to {weights} ({weights.stat().st_size / 1e6:.1f} MB).")
    evaluate(*load_chat(weights)[:2])


@click.command(help=__doc__)
@click.option("--use-cache", is_flag=True, help="Talk through the KV cache of module 15.")
@click.option("--cache", type=click.Choice(list(CACHES)), help=f"Talk through another cache. {kinds()}.")
@click.option("--prompt", help="Answer this one question, compare both ways, and end.")
@click.option("--demo", "show_demo", is_flag=True, help="Three questions, both ways, with all figures.")
@click.option(
    "--evaluate", "show_evaluation", is_flag=True, help="Count the questions answered to the letter."
)
@click.option(
    "--train", "do_train", is_flag=True, help="Train a new model (minutes) and save it to --weights."
)
@click.option("--steps", default=SETTINGS["steps"], show_default=True, help="Steps of training.")
@click.option("--seed", default=SETTINGS["seed"], show_default=True, help="Seed of training and of sampling.")
@click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest token.")
@click.option("--weights", type=click.Path(path_type=Path), help="Another model than the shipped one.")
def main(use_cache, cache, prompt, show_demo, show_evaluation, do_train, steps, seed, temperature, weights):
    if steps < 1:
        raise click.ClickException(f"training takes at least 1 step, got {steps}")
    if not math.isfinite(temperature) or temperature < 0:
        raise click.ClickException(f"the temperature should be finite and at least 0, got {temperature}")
    try:
        if do_train:
            train_and_save(weights or FOLDER / "my_chat.npz", steps, seed)
            return
        cache = cache or ("plain" if use_cache else None)
        model, tokenizer, _ = load_chat(weights or SHIPPED)
        sampling = {"temperature": temperature, "rng": seed}
        if show_demo:
            demo(model, tokenizer)
        elif show_evaluation:
            evaluate(model, tokenizer)
        elif prompt is not None:
            chat = Chat(model, tokenizer, cache)
            say(chat, prompt, **sampling)
            chat.close()
            compare(model, tokenizer, [prompt], "The same question again, greedily", cache or "plain")
            out.print(describe_cache(model, cache or "plain"))
        else:
            converse(model, tokenizer, cache, **sampling)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
