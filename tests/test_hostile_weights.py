"""Damaged and hostile weight files: a clear error or a right load, never a crash, a hang, or memory taken."""

import json
import os
import re
import struct
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from toy import REPO
from weight_files import LLAMA3, llama_config, random_gpt, write_gguf, write_llama_folder

pytestmark = pytest.mark.llm

ERRORS = {"ValueError", "FileNotFoundError"}
PEAK = 100  # megabytes that the worker's peak may rise by


def judge(tmp_path, cases):
    """cases: [(kind, path), ...] -> how each ended, from one process that opens them all."""
    listed = tmp_path / "cases.json"
    listed.write_text(json.dumps([[kind, str(path)] for kind, path in cases]), encoding="utf-8")
    path = os.pathsep.join([str(REPO), str(REPO / "tests" / "benchmarks")])
    env = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(REPO / "tests" / "weight_worker.py"), str(listed)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(results) == len(cases), (
        f"status {done.returncode} after {len(results)} of {len(cases)} files: {done.stderr[-500:]}"
    )
    for (_, path), result in zip(cases, results, strict=True):
        assert result["ending"] in ERRORS | {"loaded"}, f"{path}: {result}"
        assert result["rise"] < PEAK, f"{path}: the peak of memory rose by {result['rise']:.0f} MB"
        if result["ending"] != "loaded":
            said = result["said"]
            assert str(tmp_path) in said and len(said) < 900 and "\n" not in said, f"not one sentence: {said}"
    return results


def judge_attacks(tmp_path, attacks, make):
    """attacks: {name: (..., what the error says)}; make(name, first of these) -> (kind, path)."""
    results = judge(tmp_path, [make(name, attack) for name, (attack, _) in attacks.items()])
    for (name, (_, said)), result in zip(attacks.items(), results, strict=True):
        assert result["ending"] in ERRORS, f"{name}: it was {result['ending']}"
        assert re.search(said, result["said"]), f"{name}: {result['said']}"


# ---- GGUF, one attack at a time; each is a function from a sound file to a hostile one


def string(text) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def put(data: bytes, place: int, code: str, *values) -> bytes:
    """`values` written over what stands at `place`."""
    new = struct.pack(f"<{code}", *values)
    return data[:place] + new + data[place + len(new) :]


def behind(name: str, skip: int, code: str, *values):
    """Over what stands `skip` bytes behind the name of a metadata entry or a tensor.

    Behind an entry's name come its type (4 bytes) and its value; behind a matrix's the number of dimensions
    (4), the sizes (8 each), type (4) and offset (8).
    """

    def attack(data):
        assert data.count(string(name)) == 1
        return put(data, data.index(string(name)) + len(string(name)) + skip, code, *values)

    return attack


def number(name, new, code="I"):
    return behind(f"llama.{name}", 4, code, new)


def u32(*numbers) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


UINT8, UINT32, FLOAT32, TEXT, ARRAY, UINT64 = 0, 4, 6, 8, 9, 10  # types of metadata


def entry(name, kind, value: bytes):
    """One metadata entry more, in front, and another that fills it up to a multiple of the alignment."""
    new = string(name) + u32(kind) + value
    new += string("fill") + u32(TEXT) + string("x" * ((-len(new) - 24) % 32))

    def attack(data):
        count = struct.unpack("<Q", data[16:24])[0]
        return put(data, 16, "Q", count + 2)[:24] + new + data[24:]

    return attack


def renamed(old, new):
    def attack(data):
        assert data.count(string(old)) == 1 and len(old) == len(new)
        return data.replace(string(old), string(new))

    return attack


def array(kind, count, items=b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


NESTED = array(ARRAY, 1) * 1000 + array(UINT8, 1, b"7")
Q, DOWN, KEY = "blk.0.attn_q.weight", "blk.1.ffn_down.weight", "blk.1.attn_k.weight"
GGUF_ATTACKS = {
    "an empty file": (lambda data: b"", "the magic number should take 4 bytes, but 0 are left"),
    "another format": (lambda data: b"GGML" + data[4:], "begins with b'GGUF', this one with b'GGML'"),
    "version 1": (lambda data: put(data, 4, "I", 1), "GGUF version 1 is not among"),
    "big-endian": (lambda data: put(data, 4, "I", 3 << 24), "GGUF version 50331648"),
    # counts and lengths
    "2**63 tensors": (
        lambda data: put(data, 8, "Q", 2**63),
        "tensors is 9,223,372,036,854,775,808, which the",
    ),
    "2**20 tensors": (lambda data: put(data, 8, "Q", 2**20), "the number of tensors is 1,048,576, which"),
    "one tensor fewer": (lambda data: put(data, 8, "Q", 19), "1 tensors missing .'output_norm.weight'"),
    "one tensor more": (lambda data: put(data, 8, "Q", 21), "."),
    "2**63 entries": (lambda data: put(data, 16, "Q", 2**63), "the number of metadata entries is 9,223,372"),
    "a name of 2**62 bytes": (
        lambda data: put(data, 24, "Q", 2**62),
        "4,611,686,018,427,387,904 bytes, more",
    ),
    "a name of 10,000 bytes": (entry("x" * 10_000, UINT32, u32(1)), "take 10,000 bytes, more than 256"),
    "a text of 2**62 bytes": (
        behind("general.architecture", 4, "Q", 2**62),
        "4,611,686,018,427,387,904 bytes",
    ),
    "a text of 2**24 bytes": (behind("general.architecture", 4, "Q", 2**24), "16,777,216 bytes, but"),
    "a name that is no text": (entry(b"\xff\xfe", UINT32, u32(1)), "entry is not UTF-8 at byte 0 of 2"),
    "2**40 items": (entry("x", ARRAY, array(UINT8, 2**40)), "length of 'x' is 1,099,511,627,776, which"),
    "2**61 items of 8": (entry("x", ARRAY, array(UINT64, 2**61)), "2,305,843,009,213,693,952, which"),
    "2**61 texts": (entry("x", ARRAY, array(TEXT, 2**61)), "2,305,843,009,213,693,952, which"),
    "1000 nested arrays": (entry("x", ARRAY, NESTED), "'x' is an array of type 9; arrays hold numbers or"),
    "items of type 99": (entry("x", ARRAY, array(99, 1)), "'x' is an array of type 99"),
    "a value of type 13": (entry("x", 13, b"1234"), "'x' has type 13, known are 0 to 12"),
    "an entry twice": (entry("llama.block_count", UINT32, u32(2)), "'llama.block_count' twice"),
    "alignment 0": (entry("general.alignment", UINT32, u32(0)), "a power of 2, got 0"),
    "alignment 48": (entry("general.alignment", UINT32, u32(48)), "a power of 2, got 48"),
    "alignment 2**31": (entry("general.alignment", UINT32, u32(2**31)), "a power of 2, got 2147483648"),
    "alignment as text": (entry("general.alignment", TEXT, string("32")), "a power of 2, got '32'"),
    # tensors
    "no dimensions": (behind(Q, 0, "I", 0), "has 0 dimensions, 1 to 4"),
    "5 dimensions": (behind(Q, 0, "I", 5), "has 5 dimensions, 1 to 4"),
    "2**32 - 1 dimensions": (behind(Q, 0, "I", 2**32 - 1), "has 4294967295 dimensions, 1"),
    "a product beyond 2**64": (behind(Q, 4, "QQ", 2**40, 2**40), "would end at byte"),
    "a product of 2**64": (behind(Q, 4, "QQ", 2**63, 2), "would end at byte"),
    "a size of 0": (behind(Q, 4, "Q", 0), "has shape .64, 0., each size should be at least 1"),
    "rows that are no blocks": (behind(Q, 4, "Q", 63), "has rows of 63, not blocks of 32"),
    "more rows than bytes": (behind(Q, 12, "Q", 2**30), "would end at byte"),
    "swapped sizes": (behind(DOWN, 4, "QQ", 64, 96), r"shape \(96, 64\), the model needs \(64, 96\)"),
    "a tensor of type 77": (behind(Q, 20, "I", 77), "is of type 77, which is unknown"),
    "a tensor of a removed type": (behind(Q, 20, "I", 4), "is of type 4, which is unknown"),
    "a tensor of integers": (behind("output_norm.weight", 12, "I", 26), "is of type I32, which cannot"),
    "an offset beyond the file": (behind(Q, 24, "Q", 2**40), "at byte 1,099,511,627,776 of the data, not"),
    "an offset near 2**64": (behind(Q, 24, "Q", 2**64 - 32), "at byte 18,446,744,073,709,551,584 of the"),
    "overlapping tensors": (behind(Q, 24, "Q", 0), "at byte 0 of the data, not"),
    "two tensors of a name": (renamed(KEY, "blk.0.attn_k.weight"), "two tensors named 'blk.0.attn_k.weight'"),
    "a tensor of another name": (renamed(KEY, "blk.1.attn_k.banana"), "1 unknown .'blk.1.attn_k.banana'"),
    "a third layer": (renamed(KEY, "blk.2.attn_k.weight"), "1 tensors missing .'blk.1.attn_k.weight'"),
    "cut in the data": (lambda data: data[:-1], "would end at byte"),
    "nan in the data": (lambda data: put(data, len(data) - 4, "f", np.nan), "1 of 64 numbers are not finite"),
    "an infinite scale": (lambda data: put(data, len(data) - 276, "e", np.inf), "ffn_down.*are not finite"),
    # what the metadata say of the model
    "another architecture": (
        behind("general.architecture", 4, "Q5s", 5, b"gemma"),
        "is 'gemma', only 'llama'",
    ),
    "no architecture": (renamed("general.architecture", "general.architektura"), "architecture is missing"),
    "no heads": (number("attention.head_count", 0), "head_count should be a whole number from 1"),
    "7 heads": (number("attention.head_count", 7), "7 query heads cannot share 2"),
    "2 heads": (number("attention.head_count", 2), "dimension_count is 16, a head has 32"),
    "no kv heads": (number("attention.head_count_kv", 0), "head_count_kv should be a whole number"),
    "3 kv heads": (number("attention.head_count_kv", 3), "4 query heads cannot share 3"),
    "8 kv heads": (number("attention.head_count_kv", 8), "4 query heads cannot share 8"),
    "4 kv heads": (number("attention.head_count_kv", 4), r"shape \(32, 64\), the model needs \(64, 64\)"),
    "10**9 layers": (number("block_count", 10**9), "1,000,000,000 layers cannot be in a file of 20 tensors"),
    "no layers": (number("block_count", 0), "block_count should be a whole number from 1 to .*, got 0"),
    "1 layer": (number("block_count", 1), "0 tensors missing .., 9 unknown"),
    "3 layers": (number("block_count", 3), "9 tensors missing"),
    "a width of 2**32 - 8": (number("embedding_length", 2**32 - 8), "40 positions of 1073741822 is larger"),
    "a width of 66": (number("embedding_length", 66), "66 is not divisible by 4 heads"),
    "hidden 2**32 - 1": (number("feed_forward_length", 2**32 - 1), r"the model needs \(4294967295, 64\)"),
    "no positions": (number("context_length", 0), "context_length should be a whole number"),
    "2**32 - 1 positions": (number("context_length", 2**32 - 1), "4,294,967,295 positions of 16 is larger"),
    "another vocabulary": (number("vocab_size", 51), "vocab_size counts 51 tokens, token_embd.weight 50"),
    "another list of tokens": (
        lambda data: entry("tokenizer.ggml.tokens", ARRAY, array(TEXT, 2, string("a") + string("b")))(
            renamed("tokenizer.ggml.tokens", "tokenizer.ggml.spoken")(data)
        ),
        "tokenizer.ggml.tokens counts 2 tokens, token_embd.weight 50",
    ),
    "no embedding": (
        renamed("token_embd.weight", "token_embd.height"),
        "token_embd.weight is not among its 20",
    ),
    "eps negative": (number("attention.layer_norm_rms_epsilon", -1e-5, "f"), "at most 1, got -"),
    "eps 0": (number("attention.layer_norm_rms_epsilon", 0, "f"), "above 0 and at most 1, got 0.0"),
    "eps nan": (number("attention.layer_norm_rms_epsilon", np.nan, "f"), "at most 1, got nan"),
    "eps infinite": (number("attention.layer_norm_rms_epsilon", np.inf, "f"), "at most 1, got inf"),
    "rotary base 0": (
        number("rope.freq_base", 0, "f"),
        "freq_base should be above 1 and at most .*, got 0.0",
    ),
    "rotary base nan": (number("rope.freq_base", np.nan, "f"), "got nan"),
    "half a head turned": (number("rope.dimension_count", 8), "dimension_count is 8, a head has 16"),
    "long heads": (
        entry("llama.attention.key_length", UINT32, u32(2**31)),
        "positions of 2147483648 is larger",
    ),
    "odd heads": (entry("llama.attention.key_length", UINT32, u32(17)), "should be even, it has 17"),
    "other values": (
        entry("llama.attention.value_length", UINT32, u32(8)),
        "value_length is 8, a head has 16",
    ),
    "experts": (entry("llama.expert_count", UINT32, u32(8)), "expert_count is 8, only 0 is supported"),
    "experts in a list": (
        entry("llama.expert_count", ARRAY, array(UINT32, 2, u32(8, 8))),
        r"is \[8, 8\], only 0",
    ),
    "scaled positions": (entry("llama.rope.scaling.type", TEXT, string("yarn")), "is 'yarn', only 'none'"),
    "slowed by nan": (
        entry("llama.rope.scaling.factor", FLOAT32, struct.pack("<f", np.nan)),
        "scaling.factor should be above 0 .*, got nan",
    ),
    "a window": (
        entry("llama.attention.sliding_window", UINT32, u32(9)),
        "window' asks for something that is",
    ),
    "a size missing": (renamed("llama.block_count", "other.block_count"), "llama.block_count is missing"),
    "a size as text": (
        lambda data: entry("llama.block_count", TEXT, string("2"))(
            renamed("llama.block_count", "other.block_count")(data)
        ),
        "block_count should be a whole number from 1 to .*, got '2'",
    ),
}


@pytest.fixture(scope="module")
def sound_gguf(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "sound.gguf"
    write_gguf(path, "Q4_1")
    return path.read_bytes()


def test_hostile_gguf_files(tmp_path, sound_gguf):
    def make(name, attack):
        path = tmp_path / f"{name.replace(' ', '_')}.gguf"
        path.write_bytes(attack(sound_gguf))
        return "gguf", path

    judge_attacks(tmp_path, GGUF_ATTACKS, make)


# ---- safetensors, its index and config.json


def safetensors(header, data=b"", size=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def one(dtype="F32", shape=(1,), begin=0, end=4) -> bytes:
    info = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return safetensors({"model.norm.weight": info}, bytes(4))


FILE_ATTACKS = {
    "empty": (b"", "a header of 0 bytes is not in this file"),
    "7 bytes": (bytes(7), "a header of 0 bytes is not in this file"),
    "no header": (bytes(8), "is not a whole safetensors file"),
    "a header of 2**63 bytes": (
        safetensors(b"{}", size=2**63),
        "9,223,372,036,854,775,808 bytes is not in this",
    ),
    "a header of 2**30 bytes": (safetensors(b"{}", size=2**30), "1,073,741,824 bytes is not in this file"),
    "longer than the file": (safetensors(b"{}", size=3), "a header of 3 bytes is not in this file"),
    "not JSON": (safetensors(b"{nonsense}"), "is not a whole safetensors file"),
    "a list": (safetensors(b"[]"), "is not a whole safetensors file"),
    "not UTF-8": (safetensors(b'{"\xff":1}'), "is not a whole safetensors file"),
    "deep": (safetensors(b'{"a":' * 5000), "is not a whole safetensors file"),
    "a tensor twice": (
        safetensors(b"{" + one()[9:-5] + b"," + one()[9:-4], bytes(4)),
        "of 2 names in an object only 1 are different",
    ),
    "data beyond the file": (one(shape=(2,), end=8), "is not a whole safetensors file"),
    "data before the file": (one(begin=-4, end=0), "is not a whole safetensors file"),
    "2**64 numbers": (one(shape=(2**63, 2)), "is not a whole safetensors file"),
    "2**62 numbers": (one(shape=(2**62,)), "is not a whole safetensors file"),
    "shape and bytes differ": (one(shape=(2,)), "is not a whole safetensors file"),
    "an unknown dtype": (one("F3\n" + "x" * 999), "is not a whole safetensors file"),
    "another model": (
        one(),
        "holds another model: 20 tensors missing|20 tensors|2 layers cannot be in a file of 1",
    ),
}
NO_FILE = "is not the name of a .safetensors file in this folder"
INDEX_ATTACKS = {
    "up": ({"weight_map": {"a": "../secret.safetensors"}}, NO_FILE),
    "up on Windows": ({"weight_map": {"a": "..\\secret.safetensors"}}, NO_FILE),
    "from the root": ({"weight_map": {"a": "/etc/secret.safetensors"}}, NO_FILE),
    "a drive": ({"weight_map": {"a": "C:secret.safetensors"}}, NO_FILE),
    "a null byte": ({"weight_map": {"a": "a\0b.safetensors"}}, NO_FILE),
    "another kind of file": ({"weight_map": {"a": "config.json"}}, NO_FILE),
    "a missing shard": (
        {"weight_map": {"a": "gone.safetensors"}},
        "No such file or directory: .*gone.safetensors",
    ),
    "a tensor that is not there": (
        {"weight_map": {"a": "model-0.safetensors"}},
        "'a' is not among the 7 tensors",
    ),
    "a list of names": ({"weight_map": ["model-0.safetensors"]}, "should say for each tensor in which file"),
    "numbers": ({"weight_map": {"a": 1}}, "should say for each tensor in which file"),
    "no map": ({}, "should say for each tensor in which file"),
    "an empty map": ({"weight_map": {}}, "2 layers cannot be in a file of 0 tensors"),
    "a list": ([], "should hold a JSON object, it holds a list"),
}
# a dictionary is what changes in a sound config.json, bytes stand for the whole file
CONFIG_ATTACKS = {
    "not JSON": (b"{'a': 1}", "config.json is not JSON: Expecting"),
    "nothing": (b"", "config.json is not JSON"),
    "not UTF-8": (b'{"model_type": "\xff"}', "config.json is not JSON: 'utf-8' codec"),
    "a list": (b"[]", "should hold a JSON object, it holds a list"),
    "deep": (b'{"a":' + b"[" * 100_000, "config.json is not JSON"),
    "5000 digits": (b'{"hidden_size": ' + b"9" * 5000 + b"}", "config.json is not JSON: Exceeds the limit"),
    "4000 digits": (
        {"hidden_size": 10**3999},
        "hidden_size should be a whole number from 1 to .*, got 1000",
    ),
    "a name twice": (b'{"vocab_size": 5, "vocab_size": 50}', "of 2 names in an object only 1 are different"),
    "large": (b" " * 2**23, "is larger than 4,194,304 bytes"),
    "another architecture": (
        {"architectures": ["QwenForCausalLM"]},
        "architectures is .'QwenForCausalLM'., only",
    ),
    "another type": ({"model_type": "mistral"}, "model_type is 'mistral', only 'llama'"),
    "no type": ({"model_type": None}, "model_type is missing"),
    "no width": ({"hidden_size": None}, "hidden_size is missing"),
    "a width as text": ({"hidden_size": "64"}, "2..63 - 1, got '64'"),
    "a width as decimal": ({"hidden_size": 64.0}, "2..63 - 1, got 64.0"),
    "a width as truth": ({"hidden_size": True}, "2..63 - 1, got True"),
    "a width as list": ({"hidden_size": [64]}, r"2..63 - 1, got \[64\]"),
    "a negative width": ({"hidden_size": -64}, "2..63 - 1, got -64"),
    "a huge width": (
        {"hidden_size": 2**62},
        r"shape \(50, 64\), the model needs \(50, 4611686018427387904\)|numbers",
    ),
    "huge layers": ({"num_hidden_layers": 2**62}, "layers cannot be in a file of 20 tensors"),
    "a huge vocabulary": ({"vocab_size": 2**62}, r"the model needs \(4611686018427387904, 64\)"),
    "huge positions": ({"max_position_embeddings": 2**62}, "is larger than 16,777,216 numbers"),
    "a huge head": ({"head_dim": 2**62}, "is larger than 16,777,216 numbers"),
    "no kv heads": ({"num_key_value_heads": 0}, "2..63 - 1, got 0"),
    "3 kv heads": ({"num_key_value_heads": 3}, "4 query heads cannot share 3"),
    "8 heads": (
        {"num_attention_heads": 8, "num_key_value_heads": 2},
        r"shape \(32, 64\), the model needs \(16, 64\)",
    ),
    "eps nan": ({"rms_norm_eps": float("nan")}, "at most 1, got nan"),
    "eps as text": ({"rms_norm_eps": "1e-5"}, "at most 1, got '1e-5'"),
    "base 0": ({"rope_theta": 0}, "rope_theta should be above 1"),
    "base infinite": ({"rope_theta": float("inf")}, "rope_theta should be above 1"),
    "half of Llama 3": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "low_freq_factor is missing",
    ),
    "Llama 3 upside down": (
        {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}},
        "low_freq_factor 4 should be below high_freq_factor 4",
    ),
    "Llama 3 without its context": (
        {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": None}},
        "original_max_position_embeddings is missing",
    ),
    "slowed by 0": ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor should be above 0 .*, got 0"),
    "slowed by text": ({"rope_scaling": LLAMA3 | {"factor": "8"}}, "factor should be above 0 .*, got '8'"),
    "scaled parameters": ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn', only 'default'"),
    "scaled as before": ({"rope_scaling": {"type": "dynamic"}}, "rope_type is 'dynamic', only 'default'"),
    "scaling in a list": ({"rope_scaling": [8.0]}, r"rope_scaling should be an object, got \[8.0\]"),
    "half a head turned": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, only 1.0"),
    "parameters in a list": ({"rope_parameters": [1]}, r"rope_parameters should be an object, got \[1\]"),
    "biases": ({"attention_bias": True}, "attention_bias is True, only False"),
    "biases in the MLP": ({"mlp_bias": True}, "mlp_bias is True, only False"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu'"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config is .'bits': 4., only None"),
    "untied": ({"tie_word_embeddings": False}, "1 tensors missing .'lm_head.weight'"),
    "tied by text": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', only False or True"),
}


def folder_with(tmp_path, place, name, shards=1):
    """A sound folder under a name made of letters."""
    folder = tmp_path / place / re.sub(r"\W", "_", name)
    write_llama_folder(folder, shards=shards)
    return folder


def test_hostile_safetensors(tmp_path):
    def make(name, data):
        folder = folder_with(tmp_path, "file", name)
        (folder / "model.safetensors").write_bytes(data)
        return "llama", folder

    judge_attacks(tmp_path, FILE_ATTACKS, make)


def test_hostile_indexes(tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "secret.safetensors").write_bytes(one())

    def make(name, index):
        folder = folder_with(tmp_path, "index", name, shards=3)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        return "llama", folder

    judge_attacks(tmp_path, INDEX_ATTACKS, make)


def test_hostile_configs(tmp_path):
    def make(name, change):
        folder = folder_with(tmp_path, "config", name)
        if isinstance(change, dict):
            change = json.dumps(llama_config() | change).encode()
        (folder / "config.json").write_bytes(change)
        return "llama", folder

    judge_attacks(tmp_path, CONFIG_ATTACKS, make)


def test_what_is_missing_is_told(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    no_config = folder_with(tmp_path, "no", "config")
    (no_config / "config.json").unlink()
    cases = [("gguf", tmp_path / "gone.gguf"), ("llama", empty), ("gpt", empty), ("llama", no_config)]
    results = judge(tmp_path, cases)
    assert {result["ending"] for result in results} == {"FileNotFoundError"}
    assert results[1]["said"].endswith("holds neither model.safetensors nor model.safetensors.index.json")


def test_numbers_that_are_not_finite_or_no_floats(tmp_path):
    from safetensors.numpy import load_file, save_file

    nan, ints = folder_with(tmp_path, "bad", "nan"), folder_with(tmp_path, "bad", "ints")
    for folder, change in ((nan, lambda x: np.where(x > 1, np.inf, x)), (ints, lambda x: x.astype(np.int32))):
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = change(tensors["model.norm.weight"])
        save_file(tensors, folder / "model.safetensors")
    results = judge(tmp_path, [("llama", nan), ("llama", ints)])
    assert re.search(r"model.norm.weight: \d+ of 64 numbers are not finite", results[0]["said"])
    assert results[1]["said"].endswith("model.norm.weight holds I32, not one of F32, F16, BF16")


# ---- any damage, drawn at random

NASTY = [b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 3, struct.pack("<Q", 2**63), struct.pack("<I", 2**31)]
VALUES = [0, -1, 1, 2**31, 2**62, 10**30, 1.5, float("nan"), True, None, "x", [], {}, [[1]]]


def mutate(data: bytes, header: int, rng) -> bytes:
    """One damage somewhere in the first `header` bytes."""
    place = int(rng.integers(header))
    kind = rng.integers(7)
    if kind == 0:
        return data[:place]
    if kind == 1:  # 1 to 8 bits
        flipped = bytearray(data)
        for _ in range(rng.integers(1, 9)):
            flipped[rng.integers(header)] ^= 1 << rng.integers(8)
        return bytes(flipped)
    if kind == 2:
        new = NASTY[rng.integers(len(NASTY))]
        return data[:place] + new + data[place + len(new) :]
    if kind == 3:  # bytes that are gone
        return data[:place] + data[place + int(rng.integers(1, 65)) :]
    if kind == 4:  # bytes that come twice
        return data[: place + int(rng.integers(1, 65))] + data[place:]
    if kind == 5:  # two places exchanged
        first, second = sorted((place, int(rng.integers(header))))
        a, b = data[first : first + 8], data[second : second + 8]
        if second - first < 8:
            return data[:first] + data[first : second + 8][::-1] + data[second + 8 :]
        return data[:first] + b + data[first + 8 : second] + a + data[second + 8 :]
    return data[:place] + rng.bytes(16) + data[place + 16 :]


def mutate_config(data: bytes, rng) -> bytes:
    config = json.loads(data)
    names = sorted(config)
    for _ in range(rng.integers(1, 3)):
        config[names[rng.integers(len(names))]] = VALUES[rng.integers(len(VALUES))]
    return json.dumps(config).encode()


def test_300_files_with_random_damage(tmp_path, sound_gguf):
    """Headers and whole files. What still loads has its weights, or the damage is where nothing can tell."""
    rng = np.random.default_rng(0)
    header = sound_gguf.index(string("output_norm.weight")) + 60
    write_llama_folder(tmp_path / "llama")
    random_gpt().save_pretrained(tmp_path / "gpt")
    (tmp_path / "sound.gguf").write_bytes(sound_gguf)
    cases = [("gguf", tmp_path / "sound.gguf"), ("llama", tmp_path / "llama"), ("gpt", tmp_path / "gpt")]
    where = ["sound"] * 3
    for i in range(140):
        path = tmp_path / f"{i}.gguf"
        path.write_bytes(mutate(sound_gguf, header if i < 120 else len(sound_gguf), rng))
        cases.append(("gguf", path))
        where.append("header" if i < 120 else "anywhere")
    for i in range(160):
        kind = ("llama", "gpt")[i % 2]
        folder = tmp_path / f"{kind}{i}"
        folder.mkdir()
        weights = (tmp_path / kind / "model.safetensors").read_bytes()
        config = (tmp_path / kind / "config.json").read_bytes()
        in_header = i % 8 < 4
        if i >= 80:
            config = mutate_config(config, rng) if i % 4 < 3 else mutate(config, len(config), rng)
        else:
            length = 8 + int.from_bytes(weights[:8], "little")
            weights = mutate(weights, length if in_header else len(weights), rng)
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "config.json").write_bytes(config)
        cases.append((kind, folder))
        where.append("config" if i >= 80 else "header" if in_header else "anywhere")
    results = judge(tmp_path, cases)
    sound = {kind: result for (kind, _), result in zip(cases[:3], results[:3], strict=True)}
    assert {result["ending"] for result in sound.values()} == {"loaded"}
    endings = Counter()
    for (kind, path), place, result in list(zip(cases, where, results, strict=True))[3:]:
        loaded = result["ending"] == "loaded"
        if loaded and place != "anywhere":  # what is damaged in the data cannot be seen: there is no checksum
            assert result["digest"] == sound[kind]["digest"], f"{path} gave other weights"
        endings[place, loaded] += 1
    assert sum(endings.values()) == 300
    for place in ("header", "config", "anywhere"):
        assert endings[place, False] > endings[place, True] > 0, f"of {place} both should occur: {endings}"
