"""A GPT, AdamW and a shuffled DataLoader: stopped in the middle of an epoch, it goes on to the same bits."""

import numpy as np
import pytest

from tinytorch.core.dataloader import DataLoader, TensorDataset, TokenDataset
from tinytorch.core.layers import Linear
from tinytorch.core.losses import MSELoss
from tinytorch.core.optimizers import AdamW
from tinytorch.core.training import CosineSchedule, Trainer, load_arrays
from tinytorch.models.transformer import GPT

TOKENS = np.random.default_rng(0).integers(0, 19, 100)


def make(seed, context=8):
    model = GPT(19, embed_dim=12, num_layers=2, num_heads=3, max_seq_len=8, seed=seed)
    loader = DataLoader(TokenDataset(TOKENS, context, stride=3), 4, shuffle=True, seed=seed)
    optimizer = AdamW(model.parameters(), weight_decay=0.1)
    return Trainer(model, optimizer, schedule=CosineSchedule(0.01, 20, 3), max_norm=1.0), loader


@pytest.mark.parametrize("first", [5, 8, 13])
def test_a_gpt_resumes_exactly(tmp_path, first):
    whole, loader = make(seed=1)
    assert len(loader) == 8  # so 8 is the end of an epoch, the others are in the middle of one
    losses, resumed = [], []
    whole.fit(loader, 18, lambda step, loss: losses.append(loss))
    trainer, loader = make(seed=1)
    trainer.fit(loader, first)
    trainer.save(tmp_path / "x.npz", loader)
    trainer, loader = make(seed=2)
    trainer.load(tmp_path / "x.npz", loader)
    trainer.fit(loader, 18, lambda step, loss: resumed.append(loss))
    assert resumed == losses[first:]
    for name, array in whole.model.state_dict().items():
        assert np.array_equal(array, trainer.model.state_dict()[name]), name


def test_going_on_in_the_same_process_is_exact_too():
    whole, loader = make(seed=1)
    whole.fit(loader, 18)
    trainer, loader = make(seed=1)
    for stop in (3, 8, 11, 18):
        trainer.fit(loader, stop)
    for name, array in whole.model.state_dict().items():
        assert np.array_equal(array, trainer.model.state_dict()[name]), name


def test_another_loader_changes_nothing(tmp_path):
    trainer, loader = make(seed=1)
    trainer.fit(loader, 2)
    trainer.save(tmp_path / "x.npz", loader)
    other, loader = make(seed=2, context=5)
    before = {name: array.copy() for name, array in other.model.state_dict().items()}
    with pytest.raises(ValueError, match="num_samples"):
        other.load(tmp_path / "x.npz", loader)
    assert other.steps == 0
    assert all(np.array_equal(before[name], array) for name, array in other.model.state_dict().items())


def test_measuring_on_the_same_loader_changes_nothing(tmp_path):
    """Neither the batches nor what is saved: `evaluate` in on_step is a pass within a pass."""

    def run(measure):
        data = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
        loader = DataLoader(TensorDataset(data, data[:, :1]), 3, shuffle=True, seed=5)
        model = Linear(4, 1, rng=0)
        trainer = Trainer(model, AdamW(model.parameters()), loss=MSELoss())
        losses = []

        def on_step(step, loss):
            losses.append(loss)
            if measure and step % 3 == 1:
                trainer.evaluate(loader)
                next(iter(loader))
            trainer.save(tmp_path / f"{measure}-{step}.npz", loader)

        trainer.fit(loader, 6, on_step)
        state = loader.state_dict()
        trainer.fit(loader, 11, on_step)
        return losses, state, loader.state_dict()

    plain, measured = run(False), run(True)
    assert plain == measured and plain[1]["epoch"] == 1 and plain[1]["batch"] == 2
    for step in range(1, 12):
        one, other = (load_arrays(tmp_path / f"{measure}-{step}.npz") for measure in (False, True))
        assert one[1] == other[1]
