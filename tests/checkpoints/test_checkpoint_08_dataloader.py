"""Checkpoint 08: datasets, batches, order and resumption, against slow loops over plain lists."""

import json
import tracemalloc
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.core import dataloader
from tinytorch.core.dataloader import DataLoader, Dataset, TensorDataset, TokenDataset
from tinytorch.core.tensor import Tensor

quick = settings(max_examples=80, deadline=None)


def batches_of(loader):
    """One epoch as nested lists."""
    return [tuple(part.data.tolist() for part in batch) for batch in loader]


def endless(loader):
    """Epoch after epoch."""
    while True:
        yield from loader


class Squares(Dataset):
    """A dataset of somebody else: no arrays, plain numbers."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        return index, index**2


# datasets


def test_a_dataset_must_answer_both_questions():
    class Half(Dataset):
        def __len__(self):
            return 3

    with pytest.raises(TypeError, match="__getitem__"):
        Half()
    assert [sample for sample in Squares(4)] == [(0, 0), (1, 1), (2, 4), (3, 9)]


def test_a_tensor_dataset_gives_rows_as_views():
    inputs, marks = np.arange(30, dtype=np.float32).reshape(5, 2, 3), np.array([4, 3, 2, 1, 0])
    dataset = TensorDataset(Tensor(inputs), marks, [True, False, True, False, True])
    assert len(dataset) == 5
    for i in range(-5, 5):
        row, mark, flag = dataset[i]
        assert row.tolist() == inputs.tolist()[i]
        assert (mark, flag) == (marks.tolist()[i], i % 5 % 2 == 0)
        assert np.shares_memory(row, inputs)
    assert type(dataset[0]) is tuple
    assert len(list(islice(dataset, 9))) == 5
    for outside in (5, -6):
        with pytest.raises(IndexError):
            dataset[outside]


def test_doubles_become_float32_once():
    dataset = TensorDataset(np.linspace(0, 1, 6))
    assert dataset[2][0].dtype == np.float32
    assert np.shares_memory(dataset.arrays[0][2:3], dataset.arrays[0])


@pytest.mark.parametrize(
    "arrays, message",
    [
        ([], "0"),
        ([np.float32(3.0)], None),
        ([np.zeros((5, 2)), np.zeros(5), np.zeros((4, 2))], r"4.*5|5.*4"),
        ([np.zeros((4, 2)), np.zeros(5)], r"4.*5|5.*4"),
    ],
)
def test_rows_without_partners_are_refused(arrays, message):
    with pytest.raises(ValueError, match=message):
        TensorDataset(*arrays)


@quick
@given(st.integers(2, 40), st.integers(1, 12), st.integers(1, 9), st.integers(0, 99))
def test_windows_are_the_slow_loops(num_tokens, context, stride, seed):
    tokens = np.random.default_rng(seed).integers(0, 1000, num_tokens)
    want, start = [], 0
    while start + context + 1 <= num_tokens:
        want.append(
            (
                [int(tokens[start + t]) for t in range(context)],
                [int(tokens[start + t + 1]) for t in range(context)],
            )
        )
        start += stride
    if not want:
        with pytest.raises(ValueError, match=rf"(?=.*\b({context}|{context + 1})\b)(?=.*\b{num_tokens}\b)"):
            TokenDataset(tokens, context, stride)
        return
    dataset = TokenDataset(tokens, context, stride)
    assert len(dataset) == dataloader.count_windows(num_tokens, context, stride) == len(want)
    assert [(x.tolist(), y.tolist()) for x, y in islice(dataset, 99)] == want
    for i in range(1, len(want) + 1):
        assert (dataset[-i][0].tolist(), dataset[-i][1].tolist()) == want[-i]
    for outside in (len(want), -len(want) - 1, len(want) + 5):
        with pytest.raises(IndexError):
            dataset[outside]


def test_every_window_is_the_default():
    assert len(TokenDataset(range(10), 4)) == 6


def test_windows_are_views_of_the_tokens_as_they_were_stored(tmp_path):
    path = tmp_path / "tokens.bin"
    np.arange(5000, dtype=np.uint16).tofile(path)
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    dataset = TokenDataset(tokens, context=7, stride=3)
    inputs, targets = dataset[100]
    assert inputs.dtype == np.uint16
    assert np.shares_memory(inputs, tokens) and np.shares_memory(targets, tokens)
    assert targets.tolist() == list(range(301, 308))
    assert (
        np.shares_memory(TokenDataset(Tensor(np.arange(9)), 3).tokens, TokenDataset(tokens, 3).tokens)
        is False
    )
    held = Tensor(np.arange(9))
    assert np.shares_memory(TokenDataset(held, 3)[0][0], held.data)


def test_making_windows_of_a_long_stream_allocates_next_to_nothing():
    tokens = np.zeros(1_000_000, dtype=np.int64)
    tracemalloc.start()
    dataset = TokenDataset(tokens, context=256)
    for i in range(0, len(dataset), 100_000):
        dataset[i]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000, f"{peak} bytes"


@pytest.mark.parametrize(
    "tokens, context, stride, error",
    [
        (np.arange(9), 0, 1, ValueError),
        (np.arange(9), -2, 1, ValueError),
        (np.arange(9), 3, 0, ValueError),
        (np.arange(9), 3, -1, ValueError),
        (np.arange(3), 3, 1, ValueError),
        ([], 1, 1, ValueError),
        (np.arange(8).reshape(2, 4), 3, 1, ValueError),
        (np.int64(3), 1, 1, ValueError),
        (np.linspace(0, 1, 9), 3, 1, TypeError),
        ("some text", 3, 1, (TypeError, ValueError)),
        (np.arange(9), 2.5, 1, TypeError),
    ],
)
def test_impossible_windows_are_refused(tokens, context, stride, error):
    with pytest.raises(error):
        TokenDataset(tokens, context, stride)


# batches


@pytest.mark.parametrize(
    "values, dtype",
    [
        ([np.arange(3, dtype=np.uint16), np.arange(3, dtype=np.uint16)], np.int64),
        ([np.arange(3, dtype=np.int8)] * 2, np.int64),
        ([np.arange(3, dtype=np.float64)] * 2, np.float32),
        ([np.arange(3, dtype=np.float16)] * 2, np.float32),
        ([Tensor([0.0, 1.0, 2.0])] * 2, np.float32),
        ([[0, 1, 2]] * 2, np.int64),
        ([np.array([False, True, True])] * 2, np.bool_),
    ],
)
def test_a_batch_is_a_tensor_of_ids_floats_or_booleans(values, dtype):
    batch = dataloader.stack_samples(values)
    assert type(batch) is Tensor
    assert batch.shape == (2, 3)
    assert batch.dtype == dtype
    assert batch.data.tolist() == [np.asarray(value).tolist() for value in values]


def test_16_bit_ids_do_not_wrap_around_in_a_batch():
    batch = dataloader.stack_samples([np.array([60_000, 1], dtype=np.uint16)])
    assert (batch.data - 60_001).tolist() == [[-1, -60_000]]


def test_numbers_stack_to_a_row_and_a_batch_of_one_keeps_its_axis():
    assert dataloader.stack_samples([5, 6, 7]).data.tolist() == [5, 6, 7]
    assert dataloader.stack_samples([np.zeros((2, 4))]).shape == (1, 2, 4)


def test_a_batch_is_a_copy():
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    (batch,) = next(iter(DataLoader(TensorDataset(rows), 2)))
    assert not np.shares_memory(batch.data, rows)


@pytest.mark.parametrize("shapes", [((2, 4), (2, 4), (2, 3)), ((1,), (3,)), ((), (1,))])
def test_samples_of_different_shapes_are_refused(shapes):
    with pytest.raises(ValueError) as caught:
        dataloader.stack_samples([np.zeros(shape) for shape in shapes])
    assert str(shapes[0]) in str(caught.value) and str(shapes[-1]) in str(caught.value)


def test_collate_keeps_fields_apart():
    batch = dataloader.collate([([1.0, 2.0], 3), ([4.0, 5.0], 6), ([7.0, 8.0], 9)])
    assert type(batch) is tuple
    assert [part.data.tolist() for part in batch] == [[[1.0, 2.0], [4.0, 5.0], [7.0, 8.0]], [3, 6, 9]]
    single = dataloader.collate([(1,), (2,)])
    assert type(single) is tuple and single[0].data.tolist() == [1, 2]
    bare = dataloader.collate([np.array([1, 2]), np.array([3, 4])])
    assert type(bare) is Tensor and bare.data.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "samples, message", [([], "0"), ([(1, 2), (3,)], "1.*2|2.*1"), ([(1,), (2, 3)], "1.*2|2.*1")]
)
def test_samples_with_different_fields_are_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        dataloader.collate(samples)


# order


@quick
@given(st.integers(0, 60), st.integers(0, 50), st.integers(0, 2**63))
def test_an_order_holds_each_sample_once_and_can_be_had_again(num_samples, epoch, seed):
    order = dataloader.epoch_order(num_samples, epoch, seed)
    assert sorted(order.tolist()) == list(range(num_samples))
    dataloader.epoch_order(num_samples, epoch + 1, seed)
    assert np.array_equal(order, dataloader.epoch_order(num_samples, epoch, seed))
    assert dataloader.epoch_order(num_samples, epoch).tolist() == list(range(num_samples))


def test_orders_of_neighbouring_seeds_and_epochs_have_nothing_to_do_with_each_other():
    orders = {
        tuple(dataloader.epoch_order(30, epoch, seed).tolist()) for epoch in range(20) for seed in range(20)
    }
    assert len(orders) == 400


def test_every_place_is_equally_likely():
    counts = np.zeros((5, 5), dtype=int)
    for epoch in range(1000):
        counts[np.arange(5), dataloader.epoch_order(5, epoch, 0)] += 1
    assert 130 < counts.min() and counts.max() < 270, counts  # 200 expected, standard deviation 12.6


@quick
@given(st.integers(0, 30), st.integers(1, 9), st.booleans())
def test_batches_are_consecutive_slices(num_samples, batch_size, drop_last):
    order = np.random.default_rng(0).permutation(num_samples)
    want, current = [], []
    for i in order.tolist():
        current.append(i)
        if len(current) == batch_size:
            want.append(current)
            current = []
    if current and not drop_last:
        want.append(current)
    batches = dataloader.split_batches(order, batch_size, drop_last)
    assert [batch.tolist() for batch in batches] == want
    assert all(np.shares_memory(batch, order) for batch in batches)


# the loader

loaders = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 6),
        "shuffle": st.booleans(),
        "drop_last": st.booleans(),
        "seed": st.integers(0, 9),
    }
)


@quick
@given(st.integers(6, 20), loaders)
def test_an_epoch_shows_every_sample_once(num_samples, options):
    loader = DataLoader(Squares(num_samples), **options)
    for epoch in range(3):
        assert loader.epoch == epoch
        batches = batches_of(loader)
        assert len(batches) == len(loader)
        seen = [i for numbers, _ in batches for i in numbers]
        assert [i for _, squares in batches for i in squares] == [i**2 for i in seen]
        left_out = num_samples % options["batch_size"] if options["drop_last"] else 0
        assert len(set(seen)) == len(seen) == num_samples - left_out
        if not options["shuffle"]:
            assert seen == sorted(seen)
        sizes = [len(numbers) for numbers, _ in batches]
        assert set(sizes[:-1]) <= {options["batch_size"]}


def test_two_loaders_with_one_seed_agree_and_epochs_differ():
    first, second = (DataLoader(Squares(40), 7, shuffle=True, seed=3) for _ in range(2))
    epochs = [batches_of(first) for _ in range(3)]
    assert epochs == [batches_of(second) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert batches_of(DataLoader(Squares(40), 7, shuffle=True, seed=4)) not in epochs


def test_an_rng_is_used_once_for_the_seed():
    rng = np.random.default_rng(5)
    loader = DataLoader(Squares(40), 7, shuffle=True, rng=rng)
    state = rng.bit_generator.state
    first = batches_of(loader)
    assert rng.bit_generator.state == state, "an epoch must not draw from the generator"
    again = DataLoader(Squares(40), 7, shuffle=True, rng=np.random.default_rng(5))
    assert batches_of(again) == first
    assert batches_of(DataLoader(Squares(40), 7, shuffle=True, seed=loader.seed)) == first


@quick
@given(st.integers(6, 20), loaders, st.integers(0, 40))
def test_a_saved_state_goes_on_exactly(num_samples, options, stop):
    whole = DataLoader(Squares(num_samples), **options)
    batches = endless(whole)
    for _ in range(stop):
        next(batches)
    state = json.loads(json.dumps(whole.state_dict()))
    fresh = DataLoader(Squares(num_samples), **{**options, "seed": 77})
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    rest = endless(fresh)
    for _ in range(2 * len(whole) + 1):
        assert [p.data.tolist() for p in next(rest)] == [p.data.tolist() for p in next(batches)]
    assert fresh.state_dict() == whole.state_dict()


def test_a_state_survives_npz_without_pickle(tmp_path):
    loader = DataLoader(Squares(9), 2)
    batches = iter(loader)
    next(batches)
    np.savez(tmp_path / "state.npz", **loader.state_dict())
    fresh = DataLoader(Squares(9), 2)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        fresh.load_state_dict(state)
    assert fresh.state_dict() == loader.state_dict()
    assert batches_of(fresh)[0][0] == [2, 3]


def test_the_state_says_which_batch_comes_next():
    loader = DataLoader(Squares(7), 3)
    for epoch in range(2):
        batches = iter(loader)
        places = []
        for _ in range(3):
            next(batches)
            state = loader.state_dict()
            places.append((state["epoch"], state["batch"]))
        assert places == [(epoch, 1), (epoch, 2), (epoch + 1, 0)], "behind the last comes the next epoch"
        assert next(batches, None) is None
        assert (loader.epoch, loader.batch) == (epoch + 1, 0)


def test_a_look_costs_nothing():
    loader = DataLoader(Squares(12), 4, shuffle=True, seed=1)
    want = batches_of(DataLoader(Squares(12), 4, shuffle=True, seed=1))
    for _ in range(3):
        next(iter(loader))
    assert batches_of(loader) == want
    loader.load_state_dict(loader.state_dict() | {"batch": 1})
    next(iter(loader))
    assert len(batches_of(loader)) == 2, "not even after a state was loaded"
    assert len(batches_of(loader)) == 3


def test_a_look_leaves_no_trace_in_the_state():
    loader = DataLoader(Squares(12), 4, shuffle=True, seed=1)
    loader.load_state_dict(loader.state_dict() | {"epoch": 3, "batch": 1})
    before = loader.state_dict()
    for _ in range(3):
        next(iter(loader))
        assert loader.state_dict() == before, "the state says which batch the next loop begins with"


@given(
    plan=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=12),
    shuffle=st.booleans(),
    batch=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_other_passes_change_nothing_in_the_first_nor_in_its_state(plan, shuffle, batch):
    """plan: before its next batches the first pass is interrupted by others, which take so many batches."""
    loader, alone = (DataLoader(Squares(8), 3, shuffle=shuffle, seed=4) for _ in range(2))
    for each in (loader, alone):
        each.load_state_dict(each.state_dict() | {"batch": batch})
    others, first, want = [], endless(loader), endless(alone)
    next(first), next(want)
    for kind, batches in plan:
        if kind == 0:
            others.append(iter(loader))
        elif others:
            for _ in range(batches):
                next(others[-1], None)
        if kind == 3 and others:
            others.pop()
        for _ in range(batches % 3):
            assert [p.data.tolist() for p in next(first)] == [p.data.tolist() for p in next(want)]
        assert loader.state_dict() == alone.state_dict()


def test_a_pass_within_a_pass_is_a_whole_epoch():
    loader = DataLoader(Squares(7), 3)
    first = iter(loader)
    next(first)
    assert [batch for batch, _ in batches_of(loader)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert next(first)[0].data.tolist() == [3, 4, 5]


def test_inside_going_on_a_broken_pass_counts():
    loader = DataLoader(Squares(7), 3)
    with loader.going_on():
        next(iter(loader))
    assert loader.state_dict()["batch"] == 1
    assert [batch for batch, _ in batches_of(loader)] == [[3, 4, 5], [6]]


def test_a_seed_may_be_an_rng_and_an_rng_a_seed():
    def orders(**options):
        return [batches_of(DataLoader(Squares(9), 2, shuffle=True, **options)) for _ in range(2)]

    assert orders(rng=3) == orders(seed=3) == orders(rng=np.int64(3))
    drawn = batches_of(DataLoader(Squares(9), 2, shuffle=True, rng=np.random.default_rng(5)))
    assert drawn == batches_of(DataLoader(Squares(9), 2, shuffle=True, seed=np.random.default_rng(5)))


def test_an_epoch_is_over_with_its_last_batch_even_if_nobody_asks_for_another():
    loader, whole = (DataLoader(Squares(12), 5, shuffle=True, seed=1) for _ in range(2))
    for _ in range(3):
        assert [p.data.tolist() for p, _ in islice(loader, 3)] == [p for p, _ in batches_of(whole)]


def test_a_state_of_other_data_is_refused_and_changes_nothing():
    loader = DataLoader(Squares(10), 3, shuffle=True, seed=2)
    next(iter(loader))
    good = loader.state_dict()
    changes = [
        {"num_samples": 11},
        {"batch_size": 4},
        {"shuffle": 0},
        {"drop_last": 1},
        {"epoch": -1},
        {"seed": -1},
        {"batch": 4},
        {"batch": -1},
    ]
    for change in changes:
        ((name, value),) = change.items()
        with pytest.raises(ValueError, match=rf"{value}\b"):
            loader.load_state_dict(good | {"epoch": 8, "seed": 9} | change)
        assert loader.state_dict() == good
        assert len(batches_of(loader)) == 4 and loader.epoch == 1
        loader.load_state_dict(good)
        with pytest.raises(ValueError, match=name):
            loader.load_state_dict({key: value for key, value in good.items() if key != name})
        assert loader.state_dict() == good
        loader.epoch, loader.start = 0, 0
    for wrong in (None, 1.5, "3"):
        with pytest.raises(TypeError):
            loader.load_state_dict(good | {"epoch": wrong})


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"batch_size": 0}, ValueError, "0"),
        ({"batch_size": -3}, ValueError, "-3"),
        ({"batch_size": 2.5}, TypeError, "float"),
        ({"batch_size": 8, "drop_last": True}, ValueError, "7.*8"),
        ({"batch_size": 2, "shuffle": True}, ValueError, "seed"),
        ({"batch_size": 2, "shuffle": True, "seed": -1}, ValueError, "-1"),
        ({"batch_size": 2, "shuffle": True, "seed": 1.5}, TypeError, "float"),
        ({"batch_size": 2, "seed": 1, "rng": np.random.default_rng(0)}, ValueError, "not both"),
    ],
)
def test_impossible_loaders_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        DataLoader(Squares(7), **options)


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="0"):
        DataLoader(Squares(0), 2)
    with pytest.raises(TypeError):
        DataLoader(5, 2)


def test_any_list_is_a_dataset():
    assert [batch.data.tolist() for batch in DataLoader([1.5, 2.5, 3.5], 2)] == [[1.5, 2.5], [3.5]]


def test_batches_feed_a_language_model():
    tokens = np.random.default_rng(1).integers(0, 50, 101).astype(np.uint8)
    loader = DataLoader(TokenDataset(tokens, context=5, stride=5), batch_size=3, shuffle=True, seed=0)
    seen = 0
    for inputs, targets in loader:
        assert inputs.dtype == targets.dtype == np.int64
        assert inputs.shape == targets.shape and inputs.shape[1] == 5
        assert np.array_equal(inputs.data[:, 1:], targets.data[:, :-1])
        seen += targets.size
    assert seen == 100, "with stride = context each token but the first is a target once"
