"""Checkpoint 07: the schedule, files that are whole or refused, the trainer, exact resumption."""

import json
import math
import os
import pickle
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core import training
from tinytorch.core.activations import ReLU
from tinytorch.core.layers import Dropout, Linear, Module, Sequential
from tinytorch.core.losses import CrossEntropyLoss, MSELoss
from tinytorch.core.optimizers import SGD, AdamW
from tinytorch.core.tensor import Tensor
from tinytorch.core.training import CosineSchedule, Trainer, load_arrays, save_arrays

quick = settings(max_examples=60, deadline=None)


# the schedule


@quick
@given(st.integers(1, 40), st.data())
def test_the_schedule_is_the_formula(total, data):
    warmup = data.draw(st.integers(0, total))
    low, high = sorted(data.draw(st.tuples(*[st.floats(0, 10)] * 2)))
    schedule = CosineSchedule(high, total, warmup, low)
    for step in range(total + 3):
        if step < warmup:
            want = high * (step + 1) / warmup
        elif step >= total:
            want = low
        else:
            half_turns = (step - warmup) / (total - warmup)
            want = low + (high - low) * math.sin(math.pi / 2 * (1 - half_turns)) ** 2
        assert schedule(step) == pytest.approx(want, rel=1e-9, abs=1e-12)


def test_the_schedule_refuses_nonsense():
    for arguments in (
        (1, 0),
        (1, 5, 6),
        (1, 5, -1),
        (1, 5, 0, 2),
        (1, 5, 0, -1),
        (math.inf, 5),
        (math.nan, 5),
    ):
        with pytest.raises(ValueError):
            CosineSchedule(*arguments)
    with pytest.raises(ValueError, match="-3"):
        CosineSchedule(1.0, 5)(-3)


# files


def test_arrays_and_facts_come_back(tmp_path):
    arrays = {
        "a.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
        "facts": np.array([1, 2], np.int64),
        "file": np.float32(2.5),
        "array/yarn": np.zeros((0, 4)),
        "text": np.array("Grüße"),
    }
    facts = {"steps": 3, "nested": {"list": [1.1, None, "ü"]}}
    save_arrays(tmp_path / "x.npz", arrays, facts)
    got, got_facts = load_arrays(str(tmp_path / "x.npz"))
    assert got_facts == facts and got.keys() == arrays.keys()
    for name, array in arrays.items():
        assert got[name].dtype == np.asarray(array).dtype
        assert np.array_equal(got[name], array)
    save_arrays(tmp_path / "x.npz", {})
    assert load_arrays(tmp_path / "x.npz") == ({}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_a_crash_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    save_arrays(path, {"a": np.ones(3)}, {"old": True})

    def full_disk(file, **arrays):
        file.write(b"PK")
        assert load_arrays(path)[1] == {"old": True}
        raise OSError("no space left on device")

    monkeypatch.setattr(training.np, "savez", full_disk)
    with pytest.raises(OSError, match="space"):
        save_arrays(path, {"a": np.zeros(3)})
    assert load_arrays(path)[1] == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    order, fsync, replace = [], training.os.fsync, training.os.replace
    monkeypatch.setattr(training.os, "fsync", lambda *a: order.append("fsync") or fsync(*a))
    monkeypatch.setattr(training.os, "replace", lambda *a: order.append("replace") or replace(*a))
    save_arrays(tmp_path / "x.npz", {"a": np.ones(3)})
    assert order == ["fsync", "replace"]


def test_a_file_that_cannot_be_replaced_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "x.npz").mkdir()
    with pytest.raises(OSError):
        save_arrays(tmp_path / "x.npz", {"a": np.ones(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_what_is_no_number_is_not_saved(tmp_path):
    for arrays, facts in (({"bad": np.array([{}])}, {}), ({"bad": [None]}, {}), ({}, {"x": {1, 2}})):
        with pytest.raises(TypeError):
            save_arrays(tmp_path / "x.npz", arrays, facts)
    assert list(tmp_path.iterdir()) == []


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_program_is_never_run(tmp_path):
    bomb = Bomb(tmp_path / "ran")
    np.savez(tmp_path / "a.npz", **{"array/a": np.array([bomb])}, facts=np.array("{}"))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(bomb))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ValueError, match=name):
            load_arrays(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_file_is_a_value_error(tmp_path):
    path = tmp_path / "x.npz"
    save_arrays(path, {"a": np.arange(6.0)}, {"steps": 3})
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    damaged += [whole[:i] + bytes([whole[i] ^ 128]) + whole[i + 1 :] for i in range(0, len(whole), 3)]
    intact = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            arrays, facts = load_arrays(path)
        except ValueError as error:
            assert "x.npz" in str(error)
        else:  # a byte that only the zip format's bookkeeping holds
            assert facts == {"steps": 3}
            assert all(array.tolist() == [0, 1, 2, 3, 4, 5] for array in arrays.values())
            intact += 1
    assert intact < len(damaged) / 2


@pytest.mark.parametrize(
    "content",
    [{"array/a": 1}, {"a": 1, "facts": "{}"}, {"facts": "[]"}, {"facts": "3"}, {"facts": "{"}],
)
def test_a_foreign_file_is_a_value_error(tmp_path, content):
    np.savez(tmp_path / "x.npz", **{name: np.array(value) for name, value in content.items()})
    with pytest.raises(ValueError, match="x.npz"):
        load_arrays(tmp_path / "x.npz")


def test_other_files(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match="x.npy"):
        load_arrays(tmp_path / "x.npy")
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "nothing.npz")


# the trainer


class Loader:
    """Shuffled batches, the last one smaller; knows its place."""

    def __init__(self, inputs, targets, batch_size, seed):
        self.inputs, self.targets, self.batch_size, self.seed = inputs, targets, batch_size, seed
        self.epoch = self.batch = self.start = 0

    def __len__(self):
        return -(-len(self.inputs) // self.batch_size)

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.inputs))
        for number in range(self.start, len(self)):
            rows = order[number * self.batch_size :][: self.batch_size]
            self.batch = number + 1
            yield self.inputs[rows], self.targets[rows]
        self.epoch, self.batch, self.start = self.epoch + 1, 0, 0

    def state_dict(self):
        done = self.batch == len(self)
        return {"epoch": self.epoch + done, "batch": 0 if done else self.batch, "size": len(self.inputs)}

    def load_state_dict(self, state):
        if state.get("size") != len(self.inputs):
            raise ValueError(f"the state is of {state.get('size')} samples, there are {len(self.inputs)}")
        self.epoch, self.batch, self.start = state["epoch"], state["batch"], state["batch"]


def make(seed=0, width=11, dropout=0.2, samples=29):
    rng = np.random.default_rng(seed)
    model = Sequential(
        Linear(3, width, rng=rng), ReLU(), Dropout(dropout, rng=seed), Linear(width, 4, rng=rng)
    )
    data = np.random.default_rng(5)
    inputs = data.normal(size=(samples, 3)).astype(np.float32)
    loader = Loader(inputs, data.integers(0, 4, samples), batch_size=6, seed=7)
    schedule = CosineSchedule(0.02, 40, 4)
    optimizer = AdamW(model.parameters(), weight_decay=0.1)
    return Trainer(model, optimizer, schedule=schedule, max_norm=0.5), loader


def everything(trainer, loader):
    """All that the next step depends on, as one text."""
    state = {name: array.tolist() for name, array in trainer.model.state_dict().items()}
    state |= {name: np.asarray(value).tolist() for name, value in trainer.optimizer.state_dict().items()}
    rng = [layer.rng.bit_generator.state for layer in trainer.model.layers if isinstance(layer, Dropout)]
    return json.dumps([state, rng, loader.state_dict(), trainer.steps])


@pytest.mark.parametrize("first", [1, 5, 8, 10, 22])
def test_resumption_is_exact(tmp_path, first):
    whole, loader = make()
    losses, resumed = [], []
    whole.fit(loader, 23, lambda step, loss: losses.append(loss))
    want = everything(whole, loader)
    trainer, loader = make()
    trainer.fit(loader, first)
    trainer.save(tmp_path / "x.npz", loader)
    trainer, loader = make(seed=9)
    trainer.load(tmp_path / "x.npz", loader)
    assert trainer.steps == first
    trainer.fit(loader, 23, lambda step, loss: resumed.append(loss))
    assert resumed == losses[first:]
    assert everything(trainer, loader) == want


def test_going_on_with_fit_is_exact_too():
    whole, loader = make()
    whole.fit(loader, 17)
    want = everything(whole, loader)
    trainer, loader = make()
    for stop in (3, 5, 6, 16, 17):
        trainer.fit(loader, stop)
    assert everything(trainer, loader) == want


def test_an_interrupted_training_resumes_exactly(tmp_path):
    whole, loader = make()
    whole.fit(loader, 12)
    want = everything(whole, loader)
    trainer, loader = make()
    original, before = trainer.model.forward, signal.getsignal(signal.SIGINT)

    def forward(x):
        if trainer.steps == 7:
            signal.raise_signal(signal.SIGINT)
        return original(x)

    trainer.model.forward = forward
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(loader, 12)
    assert trainer.steps == 8 and not trainer.model.training
    assert signal.getsignal(signal.SIGINT) == before
    trainer.save(tmp_path / "x.npz", loader)
    trainer, loader = make(seed=3)
    trainer.load(tmp_path / "x.npz", loader)
    trainer.fit(loader, 12)
    assert everything(trainer, loader) == want


def test_nothing_is_half_loaded(tmp_path):
    path = tmp_path / "x.npz"
    trainer, loader = make()
    trainer.fit(loader, 7)
    trainer.save(path, loader)
    arrays, facts = load_arrays(path)

    def refuses(trainer, loader):
        trainer.fit(loader, 3)
        before = everything(trainer, loader)
        with pytest.raises(ValueError):
            trainer.load(path, loader)
        assert everything(trainer, loader) == before
        trainer.fit(loader, 4)  # and it still runs

    refuses(*make(width=12))
    refuses(*make(samples=30))
    other, loader = make()
    other.optimizer = SGD(other.model.parameters(), lr=0.1, momentum=0.9)
    refuses(other, loader)
    for name in (*arrays, "model/unknown"):
        changed = {other: array for other, array in arrays.items() if other != name}
        save_arrays(path, changed if name in arrays else {**arrays, name: np.ones(2)}, facts)
        refuses(*make())
    for wrong in (
        {"steps": -1},
        {"steps": "7"},
        {"steps": None},
        {"optimizer": 3},
        {"loader": None},
        {"random": {}},
    ):
        save_arrays(path, arrays, {**facts, **wrong})
        refuses(*make())
    state = json.loads(json.dumps(facts))
    state["random"]["layers.2.rng"]["bit_generator"] = "other"
    save_arrays(path, arrays, state)
    refuses(*make())
    path.write_bytes(path.read_bytes()[:-30])
    refuses(*make())


def test_one_step_is_the_formula():
    trainer, loader = make(dropout=0.0)
    model = trainer.model
    trainer.optimizer = SGD(model.parameters(), lr=9.0)
    inputs, targets = next(iter(loader))
    model.eval()
    w1, b1, w2, b2 = (p.data.astype(float) for p in model.parameters())
    hidden = np.maximum(inputs @ w1.T + b1, 0)
    logits = hidden @ w2.T + b2
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -np.log(chances[np.arange(6), targets]).mean()
    slope = (chances - np.eye(4)[targets]) / 6
    back = slope @ w2 * (hidden > 0)
    grads = [back.T @ inputs, back.sum(0), slope.T @ hidden, slope.sum(0)]
    norm = math.sqrt(sum((g * g).sum() for g in grads))
    trainer.max_norm = norm / 2
    trainer.model.parameters()[0].grad = np.ones_like(w1, dtype=np.float32)
    assert trainer.step(inputs, targets) == pytest.approx(loss, rel=1e-5)
    assert model.training and trainer.steps == 1
    lr = 0.02 / 4
    assert trainer.optimizer.lr == pytest.approx(lr)
    for p, w, g in zip(model.parameters(), (w1, b1, w2, b2), grads, strict=True):
        np.testing.assert_allclose(p.data, w - lr * g / 2, rtol=1e-4, atol=1e-6)


class Weight(Module):
    def __init__(self):
        self.weight = Tensor(3.0, requires_grad=True)

    def forward(self, x):
        return self.weight * x


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_touches_nothing(bad):
    model = Weight()
    trainer = Trainer(model, SGD(model.parameters(), lr=0.5), loss=lambda output, targets: output)
    assert trainer.step(2.0, None) == 6.0
    trainer.loss = lambda output, targets: output * 0.0 + bad  # whose gradient is 0
    with pytest.raises(ValueError, match="2.*(nan|inf)"):
        trainer.step(2.0, None)
    trainer.loss = lambda output, targets: output
    assert model.weight.item() == 2.0 and trainer.steps == 1
    assert isinstance(trainer.step(1.0, None), float) and model.weight.item() == 1.5


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_gradient_that_is_no_number_touches_nothing(max_norm):
    model = Weight()

    class Steep(Tensor):
        def backward(self):
            model.weight.grad = np.array(np.nan, np.float32)

    optimizer = SGD(model.parameters(), lr=0.5)
    trainer = Trainer(model, optimizer, lambda output, targets: Steep(1.0), max_norm=max_norm)
    with pytest.raises(ValueError, match="1"):
        trainer.step(2.0, None)
    assert model.weight.item() == 3.0 and trainer.steps == 0


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    count=st.integers(1, 12),
    ignored=st.integers(0, 8),
    classes=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_batch_in_pieces_is_the_batch(rows, count, ignored, classes, seed):
    rng = np.random.default_rng(seed)
    inputs, loss = rng.normal(size=(rows, 3)), CrossEntropyLoss(ignore_index=-1) if classes else MSELoss()
    targets = rng.integers(0, 4, rows) if classes else rng.normal(size=(rows, 4))
    if classes:
        targets[rng.permutation(rows)[: min(ignored, rows - 1)]] = -1
    models = [Sequential(Linear(3, 5, rng=0), ReLU(), Linear(5, 4, rng=1)) for _ in range(2)]
    read = []
    models[1].wrap("forward", lambda inner, x: read.append(len(x)) or inner(x))
    losses = [
        Trainer(model, SGD(model.parameters(), lr=1.0), loss, accumulate=n).step(inputs, targets)
        for model, n in zip(models, (1, count), strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-6)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-4, atol=1e-5)
    assert sum(read) <= rows and max(read) <= -(-rows // min(count, rows))
    assert sum(read) == rows or classes, "a piece may be left out if none of its targets counts"


def test_a_piece_that_is_not_finite_changes_no_weight():
    model = Sequential(Linear(2, 3, rng=0))
    trainer = Trainer(model, SGD(model.parameters(), lr=1.0), MSELoss(), accumulate=3)
    before = model.state_dict()
    before = {name: array.copy() for name, array in before.items()}
    targets = np.ones((6, 3))
    targets[3] = np.inf
    with pytest.raises(ValueError, match="1.*inf"):
        trainer.step(np.ones((6, 2)), targets)
    assert trainer.steps == 0
    for name, array in model.state_dict().items():
        assert np.array_equal(array, before[name])


@pytest.mark.parametrize(
    ("wrong", "error"), [(0, ValueError), (-2, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_pieces_are_counted_from_1(wrong, error):
    with pytest.raises(error, match=str(wrong)):
        Trainer(Weight(), None, accumulate=wrong)


def test_max_norm_must_be_above_zero():
    for wrong in (0, -1.0, math.nan):
        with pytest.raises(ValueError):
            Trainer(Weight(), None, max_norm=wrong)


class Dry:
    """A loader with some batches in its first epoch, and none later; it is not asked for ever."""

    def __init__(self, *batches):
        self.epochs = [batches, (), ()]

    def __iter__(self):
        assert self.epochs, "a loader without batches is asked again and again"
        return iter(self.epochs.pop(0))


def test_fit_counts_and_stops():
    model, heard, given = Weight(), [], []
    trainer = Trainer(model, SGD(model.parameters(), lr=0.0), loss=lambda output, targets: output)

    class Three:
        def __iter__(self):
            for number in (1.0, 2.0, 3.0):
                given.append(number)
                yield number, None

    trainer.fit(Three(), 5, lambda *pair: heard.append(pair))
    assert heard == [(1, 3.0), (2, 6.0), (3, 9.0), (4, 3.0), (5, 6.0)]
    assert given == [1, 2, 3, 1, 2] and not model.training
    trainer.fit(Three(), 5)
    assert len(given) == 5
    for empty in (Dry(), Dry((1.0, None))):
        with pytest.raises(ValueError, match="0"):
            trainer.fit(empty, 9)
    assert trainer.steps == 6


def test_evaluate_is_the_mean_over_all_targets():
    trainer, _ = make()
    model, rng = trainer.model, np.random.default_rng(2)
    inputs, targets = rng.normal(size=(7, 5, 3)).astype(np.float32), rng.integers(0, 4, (7, 5))
    targets[rng.random((7, 5)) < 0.4] = -100
    targets[3:5] = -100
    w1, b1, w2, b2 = (p.data.astype(float) for p in model.parameters())
    losses = []
    for x, target in zip(inputs.reshape(-1, 3), targets.ravel(), strict=True):
        if target != -100:
            logits = w2 @ np.maximum(w1 @ x + b1, 0) + b2
            losses.append(math.log(sum(map(math.exp, logits))) - logits[target])
    rng_before = everything(trainer, make()[1])
    modes, forward = [], model.forward

    def watched(x):
        output = forward(x)
        modes.append((model.training, output.requires_grad))
        return output

    model.forward = watched
    for cuts in ((), (1,), (2, 6), (3, 5), range(1, 7)):
        pieces = zip(np.split(inputs, cuts), np.split(targets, cuts), strict=True)
        for training_mode in (True, False):
            model.train(training_mode)
            value = trainer.evaluate(list(pieces) or [(inputs, targets)])
            assert value == pytest.approx(sum(losses) / len(losses), rel=1e-5)
            assert model.training is training_mode
    assert set(modes) == {(False, False)}
    del model.forward
    assert everything(trainer, make()[1]) == rng_before
    for nothing in ([], [(inputs[3:5], targets[3:5])]):
        with pytest.raises(ValueError, match="0"):
            trainer.evaluate(nothing)


def test_loss_falls():
    trainer, loader = make(dropout=0.0)
    loader.targets = (loader.inputs > 0) @ [1, 2, 0]
    everything_at_once = [(loader.inputs, loader.targets)]
    before = trainer.evaluate(everything_at_once)
    trainer.fit(loader, 40)
    assert trainer.evaluate(everything_at_once) < 0.8 * before


def test_load_together_puts_back_all_that_was_loaded():
    class Part:
        def __init__(self, value):
            self.array, self.log = np.array(value), []

        def state_dict(self):
            return {"array": self.array}

        def load_state_dict(self, state):
            if isinstance(state["array"], BaseException):
                raise state["array"]
            self.array[...] = state["array"]
            order.append(int(state["array"]))

    for error in (ValueError("no"), KeyboardInterrupt()):
        order, parts = [], [Part(1), Part(2), Part(3)]
        states = [{"array": 10}, {"array": 20}, {"array": error}]
        with pytest.raises(type(error)):
            training.load_together(list(zip(parts, states, strict=True)))
        assert order == [10, 20, 2, 1]
        assert [int(part.array) for part in parts] == [1, 2, 3]
