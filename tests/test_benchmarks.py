"""The benchmarks: their plan, their baselines, what is committed, and a guard against slower code.

The guard compares ratios that were taken within one run, never seconds.
"""

import json
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import guard
import run
from counts import predicted_speedup
from figures import draw_all
from floor import Floor
from goals import CACHE_FILES, CACHE_GOALS, CHAT_GOALS, GOALS, Goal, cache_lines, goal_lines, goal_table
from memory import peak_bytes
from ours import Cached, Uncached
from parts import BATCHES, CONTEXTS, LENGTHS, PARTS, PROMPTS, piece_by_piece
from plain_numpy import Plain, PlainCached, gpt2, one_more
from plan import FOLDER, ROOT, Job, Plan, Worker, WorkerFailed, in_turn, ratio
from shapes import SHAPES, text, weight_numbers
from tinytorch.models.transformer import GPT


@pytest.fixture(scope="module")
def committed():
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def plan_of(committed) -> Plan:
    """As many threads as the committed figures had, if there are as many processors."""
    return Plan(threads=min(run.processors(), committed["machine"]["threads"]))


# the plan


def test_the_contenders_run_in_turn_after_a_round_that_does_not_count():
    log = []

    def worker(name):
        return SimpleNamespace(ask=lambda task, **options: log.append(name) or {"turn": len(log)})

    jobs = {
        "A": Job(worker("A"), "t"),
        "slow": Job(worker("slow"), "t", rounds=1),
        "B": Job(worker("B"), "t"),
    }
    said = in_turn(jobs, rounds=2)
    assert log == ["A", "slow", "B", "A", "slow", "B", "A", "B"]
    assert [[answer["turn"] for answer in said[name]] for name in jobs] == [[4, 7], [5], [6, 8]]


def test_a_ratio_is_taken_round_by_round():
    """The machine is ten times slower in the second round: the ratios do not see it."""
    above, below = [{"x": 2}, {"x": 40}, {"x": 3}], [{"x": 1}, {"x": 10}, {"x": 1}]
    assert ratio(above, below, "x") == {"median": 3, "low": 2, "high": 4, "rounds": 3}


def test_a_worker_has_the_threads_it_was_given(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    with Worker("machine:Facts", threads=1) as worker:
        facts = worker.ask("run")
    assert facts["threads"] == 1
    assert facts["gemm_gflop_per_second"] > 0 and facts["bandwidth_gb_per_second"] > 0


def test_a_worker_that_ends_early_is_an_error():
    with Worker("floor:Floor", threads=1, shape="none") as worker:
        with pytest.raises(WorkerFailed, match="floor:Floor ended with status 1 in 'stream'"):
            worker.ask("stream", new=1)


def test_an_interrupted_write_keeps_what_was_there(tmp_path):
    file = tmp_path / "results.json"
    run.write_atomically(file, "old")
    with pytest.raises(TypeError):
        run.write_atomically(file, None)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
    run.write_atomically(file, "new")
    assert file.read_text() == "new"


# the contenders


def test_the_plain_numpy_baseline_is_the_same_model():
    """Logits of every token and greedy tokens, of our GPT."""
    model, plain = GPT(*SHAPES["tiny"], 1024, seed=0), Plain("tiny")
    tokens = text("tiny", 16)
    got = gpt2(tokens[0], plain.weights, layers=4, heads=4)
    assert got.dtype == np.float32, "float64 has slipped in, which would make the baseline slow"
    np.testing.assert_allclose(got, model(tokens).data[0], rtol=1e-4, atol=1e-5)
    want = model.generate(tokens, 20, temperature=0)[0, 16:]
    assert [token for (token,) in plain.generate(16, 20)["tokens"]] == want.tolist()


def test_the_plain_numpy_baseline_with_a_cache_is_the_same_model():
    plain, tokens = PlainCached("tiny"), text("tiny", 16)[0]
    cache = np.zeros((4, 2, 4, 16, 32), np.float32)
    got = [one_more(token, i, plain.weights, 4, 4, cache) for i, token in enumerate(tokens)]
    np.testing.assert_allclose(got, gpt2(tokens, plain.weights, 4, 4), rtol=1e-4, atol=1e-5)
    assert plain.decode(256, 6)["tokens"] == Cached("tiny").decode(256, 6)["tokens"]


def test_cached_and_uncached_write_the_same():
    answers = [kind("tiny").generate(16, 20) for kind in (Cached, Uncached)]
    assert answers[0]["tokens"] == answers[1]["tokens"]
    for answer in answers:
        assert len(answer["seconds"]) == 20 and answer["seconds"] == sorted(answer["seconds"])
        assert answer["tokens_per_second"] == pytest.approx(20 / answer["seconds"][-1])


def test_a_generation_in_pieces_is_timed_token_by_token():
    """After token 4, one step of each piece stands for the others."""
    with (
        Worker("ours:Cached", 1, shape="tiny") as cached,
        Worker("ours:Uncached", 1, shape="tiny") as uncached,
    ):
        workers = {"cached": cached, "uncached": uncached}
        seconds = piece_by_piece(workers, ends=[3, 4, 8], whole=4)
        with pytest.raises(WorkerFailed, match="go_on"):
            cached.ask("go_on", tokens=1)  # all 8 have come
    assert [len(each) for each in seconds.values()] == [8, 8]
    assert len(set(seconds["cached"])) > 5 and len(set(seconds["uncached"][4:])) == 1


def test_decoding_begins_after_the_context_that_is_named():
    contender = Cached("tiny", max_seq_len=64)
    contender.decode(context=40, new=5, batch=3)
    assert contender.cache.batch_size == 3
    assert contender.cache.seq_pos == 39 + 5, "the first new token sees 40, itself included"


def test_the_floor_reads_all_weights_and_one_position():
    parameters = sum(p.data.size for p in GPT(*SHAPES["tiny"], 1024, seed=0).parameters())
    assert weight_numbers("tiny") == parameters - 1023 * 128
    floor = Floor("tiny")
    assert 0 <= weight_numbers("tiny") - floor.all.size < 128
    weights = sum(p.size for n, p in GPT(*SHAPES["tiny"], 1, seed=0).state_dict().items() if p.ndim == 2)
    assert sum(matrix.size for matrix in floor.matrices) == weights - 128, (
        "all matrices but the position's row"
    )


def test_the_peak_of_memory_is_noticed():
    before = peak_bytes()
    np.ones(before // 4)  # 8 bytes each: twice as much as was ever held
    assert peak_bytes() - before > before / 2


def test_the_predicted_speed_up_counts_every_operation():
    """By hand, with a loop over tokens, layers and matrices: a multiply and an add are two operations."""
    V, C, L, _ = SHAPES["tiny"]
    matrices = 4 * [(C, C)] + [(C, 4 * C), (4 * C, C)]

    def forward(new, seen):
        count = 2 * C * V  # the last token's logits
        for _ in range(new):
            for _ in range(L):
                count += sum(2 * rows * columns + columns for rows, columns in matrices)
                count += 2 * 2 * (seen + new) * C  # a score and a weighted value with every key
        return count

    uncached = sum(forward(n, 0) for n in range(3, 3 + 6))
    cached = forward(3, 0) + sum(forward(1, n - 1) for n in range(4, 3 + 6))
    assert predicted_speedup("tiny", new=6, prompt=3) == pytest.approx(uncached / cached, rel=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_transformers_runs_the_same_model(cache):
    ours = Cached("tiny").generate(16, 20)
    with Worker("theirs:Generation", threads=1, shape="tiny", cache=cache) as worker:
        theirs = worker.ask("generate", prompt=16, new=20)
    assert theirs["tokens"] == ours["tokens"]
    assert len(theirs["seconds"]) == 20


@pytest.mark.oracle
def test_pytorch_trains_the_same_model():
    losses = []
    for contender in ("ours:Training", "theirs:Training"):
        with Worker(contender, threads=1, shape="chat", batch=2, context=16) as worker:
            losses.append(worker.ask("train", steps=5)["losses"])
    assert np.abs(np.subtract(*losses)).max() < 1e-3 and losses[0][-1] < losses[0][0] - 0.3


# the command


def test_help():
    result = CliRunner().invoke(run.main, ["--help"])
    assert result.exit_code == 0
    assert all(word in result.output for word in ("--quick", "--only", "--every-step", *PARTS))


@pytest.mark.skipif(find_spec("torch") is not None, reason="PyTorch is installed")
def test_without_pytorch_it_says_what_to_do():
    result = CliRunner().invoke(run.main, [])
    assert result.exit_code == 1
    assert "make bench" in result.output and "--quick" in result.output


@pytest.mark.slow
def test_one_part_prints_and_writes_nothing():
    before = {file.name: file.read_bytes() for file in FOLDER.iterdir() if file.is_file()}
    result = CliRunner().invoke(run.main, ["--quick", "--only", "memory", "--rounds", "1", "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert "peak_over_needed" in result.output and "What the figures should reach" in result.output
    assert {file.name: file.read_bytes() for file in FOLDER.iterdir() if file.is_file()} == before


def test_the_table_of_goals_says_what_is_met():
    faster = Goal("a", ("x", "y"), at_least=2)
    assert [faster.met({"median": m}) for m in (1.9, 2, 3)] == [False, True, True]
    smaller = Goal("b", ("z",), at_most=2)
    assert [smaller.met({"median": m}) for m in (1.9, 2, 3)] == [True, True, False]
    assert smaller.find({"z": 1.5})["median"] == 1.5 and faster.find({"x": {}}) is None


# what is committed


def test_the_committed_figures_are_of_these_shapes_and_lengths(committed):
    assert committed["shapes"] == {name: shape._asdict() for name, shape in SHAPES.items()}
    assert set(PARTS) < set(committed)
    for shape in ("tiny", "small"):
        assert list(committed["generate"][shape]) == [str(prompt) for prompt in PROMPTS]
        cached = committed["context"][shape]["ms_per_token"]["cached"]
        assert set(map(str, CONTEXTS)) <= set(cached)
        assert [row["new_tokens"] for row in committed["speedup"][shape]] == list(LENGTHS)
    assert list(committed["batch"]["tokens_per_second"]) == [str(rows) for rows in BATCHES]
    assert committed["machine"]["torch"] and committed["machine"]["transformers"]


def test_all_contenders_wrote_the_same_tokens(committed):
    for shape, prompts in committed["generate"].items():
        for prompt, contenders in prompts.items():
            differing = [name for name, row in contenders.items() if row.get("same_tokens") is False]
            assert not differing, f"{shape}, prompt {prompt}: other tokens than ours from {differing}"


def test_the_committed_predictions_are_those_of_the_code(committed):
    for shape in ("tiny", "small"):
        for row in committed["speedup"][shape][:4]:
            assert row["predicted"] == round(predicted_speedup(shape, row["new_tokens"]), 2)


def test_every_goal_finds_its_figure(committed):
    missing = [goal.figure for goal in GOALS if goal.find(committed) is None]
    assert not missing
    assert goal_table(committed, GOALS).row_count == len(GOALS)


def test_the_pictures_are_drawn_from_what_is_committed(committed, tmp_path):
    draw_all(committed, tmp_path)
    drawn = sorted(file.name for file in tmp_path.iterdir())
    of_smollm2 = {"cache.png", "caches.png"}  # by smollm2_figures.py and tito cache-report, from runs of it
    assert drawn == sorted({file.name for file in FOLDER.glob("*.png")} - of_smollm2)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in tmp_path.iterdir())


# the guard


def test_a_ratio_below_its_share_is_named():
    committed = {"a": {"median": 10.0}, "b": {"median": 1.0}}
    measured = {"a": {"median": 5.9}, "b": {"median": 0.61}}
    assert guard.regressions(measured, committed) == ["a: 5.9 is below 60% of the committed 10"]
    assert guard.regressions({"a": {"median": 10.0}}, committed), "a ratio that is missing is no success"


@pytest.mark.slow
@pytest.mark.alone
def test_no_ratio_has_fallen(committed):
    """The best of three tries for each ratio: another busy process halves some of them for a while."""
    best = {}
    for _ in range(3):
        for name, entry in guard.measure(plan_of(committed)).items():
            if name not in best or entry["median"] > best[name]["median"]:
                best[name] = entry
        fallen = guard.regressions(best, committed["guard"])
        if not fallen:
            return
    pytest.fail("\n".join(fallen))


@pytest.mark.slow
@pytest.mark.alone
def test_the_guard_notices_a_slower_package(committed):
    fallen = guard.regressions(
        guard.measure(plan_of(committed), cached="slowed:SlowAttention"), committed["guard"]
    )
    assert any("context 256" in sentence for sentence in fallen), f"it saw only {fallen}"


def test_the_readme_shows_what_was_measured(committed):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    smollm2 = json.loads((FOLDER / "smollm2.json").read_text(encoding="utf-8"))
    caches = {name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in CACHE_FILES}
    lines = goal_lines(committed, GOALS) + goal_lines(smollm2, CHAT_GOALS)
    lines += cache_lines(caches["caches"]) + goal_lines(caches, CACHE_GOALS)
    missing = [line for line in lines if line not in readme]
    assert not missing, "the README's tables differ from the figures:\n" + "\n".join(missing)
