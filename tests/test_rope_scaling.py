"""Rotations that are slowed for longer texts: Llama 3.1's and linear ones, from folders and GGUF files."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.generation.kv_cache import generate_with_cache
from tinytorch.models.llama import Llama
from tinytorch.pretrained.llama import llama3_factors
from weight_files import LLAMA3, SIZES, write_gguf, write_llama_folder

llm = pytest.mark.llm
D, BASE = SIZES["head_dim"], SIZES["rope_base"]
OLD = {name: value for name, value in LLAMA3.items() if name != "rope_type"} | {"type": "llama3"}


def slow_frequency(i, head_dim, base, factor, low, high, context):
    """Pair i's, in the three cases in which Meta's code has it."""
    frequency = base ** (-2 * i / head_dim)
    wavelength = 2 * math.pi / frequency
    if wavelength < context / high:
        return frequency
    if wavelength > context / low:
        return frequency / factor
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def assert_turns(model, frequencies):
    """Its tables are those of these frequencies, and it writes the same with a cache."""
    angles = np.arange(SIZES["max_seq_len"])[:, None] * np.array(frequencies, np.float64)
    cos, sin = model.position_embedding.tables
    np.testing.assert_allclose(cos, np.cos(angles), atol=2e-5)
    np.testing.assert_allclose(sin, np.sin(angles), atol=2e-5)
    prompt = np.arange(1, 6)[None]
    want = model.generate(prompt, 30, temperature=0)
    np.testing.assert_array_equal(generate_with_cache(model, prompt, 30, temperature=0), want)


@given(
    half=st.integers(1, 64),
    base=st.floats(2, 1e6),
    factor=st.floats(0.5, 64),
    low=st.floats(0.1, 8),
    gap=st.floats(0.1, 8),
    context=st.integers(1, 10**5),
)
@settings(max_examples=100, deadline=None)
def test_the_factors_of_llama_3(half, base, factor, low, gap, context):
    got = llama3_factors(2 * half, base, factor, low, low + gap, context)
    plain = [base ** (-2 * i / (2 * half)) for i in range(half)]
    want = [slow_frequency(i, 2 * half, base, factor, low, low + gap, context) for i in range(half)]
    np.testing.assert_allclose(plain / got, want, rtol=1e-9)


def test_a_llama_turns_by_its_factors():
    sizes = {"vocab_size": 11, "embed_dim": 12, "num_layers": 1, "num_heads": 2, "max_seq_len": 30}
    tokens = np.arange(9)[None]
    plain, ones, linear, same = (
        Llama(**sizes, rope_factors=factors, seed=0) for factors in (None, 1, 4, np.full(3, 4.0))
    )
    np.testing.assert_array_equal(plain(tokens).data, ones(tokens).data)
    np.testing.assert_array_equal(linear(tokens).data, same(tokens).data)
    assert np.abs(plain(tokens).data - linear(tokens).data).max() > 1e-4
    quarter = plain.position_embedding(np.arange(7))  # turned by 4, position 24 is where 6 was
    np.testing.assert_allclose(linear.position_embedding(4 * np.arange(7)).cos, quarter.cos, atol=1e-6)


@llm
@pytest.mark.parametrize(
    "words",
    [
        {"rope_parameters": LLAMA3 | {"rope_theta": BASE}, "rope_theta": None},
        {"rope_scaling": LLAMA3},
        {"rope_scaling": OLD},
    ],
)
def test_a_folder_of_llama_3(tmp_path, words):
    write_llama_folder(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | words), encoding="utf-8")
    want = [slow_frequency(i, D, BASE, 8, 1, 4, 30) for i in range(D // 2)]
    assert 0 < sum(f < BASE ** (-2 * i / D) for i, f in enumerate(want)) < D // 2, "some slow, some not"
    assert_turns(Llama.from_pretrained(tmp_path / "model"), want)


@llm
@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_a_folder_that_turns_slower_by_one_number(tmp_path, name):
    write_llama_folder(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    words = {"rope_scaling": {name: "linear", "factor": 2.5}}
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | words), encoding="utf-8")
    assert_turns(
        Llama.from_pretrained(tmp_path / "model"), [BASE ** (-2 * i / D) / 2.5 for i in range(D // 2)]
    )


@llm
@pytest.mark.parametrize("factor", [None, 4.0])
@pytest.mark.parametrize("freqs", [False, True])
def test_a_gguf_file_that_turns_slower(tmp_path, factor, freqs):
    factors = np.linspace(1, 3, D // 2).astype(np.float32) if freqs else np.ones(D // 2)

    def change(writer):
        if freqs:
            writer.add_tensor("rope_freqs.weight", factors)
        if factor is not None:
            writer.add_string("llama.rope.scaling.type", "linear")
            writer.add_float32("llama.rope.scaling.factor", factor)

    write_gguf(tmp_path / "slow.gguf", change=change)
    want = [BASE ** (-2 * i / D) / float(factors[i]) / (factor or 1) for i in range(D // 2)]
    heard = []
    model = Llama.from_gguf(tmp_path / "slow.gguf", progress=lambda *counts: heard.append(counts))
    assert_turns(model, want)
    assert heard[-1][0] == heard[-1][1]


@llm
@pytest.mark.parametrize(
    ("factors", "said"),
    [
        (
            np.ones(D // 2 + 1),
            rf"rope_freqs.weight has shape \({D // 2 + 1},\), the model needs \({D // 2},\)",
        ),
        (np.zeros(D // 2), "rope_freqs.weight should hold numbers above 0"),
        (np.linspace(1, -1, D // 2), "rope_freqs.weight should hold numbers above 0"),
        (np.full(D // 2, 1e9), "at most 1e.06, it goes from 1e.09"),
        (np.full(D // 2, np.nan), rf"rope_freqs.weight: {D // 2} of {D // 2} numbers are not finite"),
    ],
)
def test_factors_that_no_model_has(tmp_path, factors, said):
    write_gguf(
        tmp_path / "x.gguf",
        change=lambda writer: writer.add_tensor("rope_freqs.weight", factors.astype(np.float32)),
    )
    with pytest.raises(ValueError, match=said):
        Llama.from_gguf(tmp_path / "x.gguf")
