"""Damaged and hostile weight files: a clear error or a right load, never a crash, a hang, or memory taken."""

import json
import os
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

from toy import REPO
from weight_files import llama_config, random_gpt, write_gguf, write_llama_folder

pytestmark = pytest.mark.llm

ERRORS = {"ValueError", "FileNotFoundError", "IsADirectoryError"}
PEAK = 100  # megabytes that the worker's peak may rise by


def judge(tmp_path, cases):
    """cases: [(kind, path), ...] -> how each ended, from one process that opens them all."""
    listed = tmp_path / "cases.json"
    listed.write_text(json.dumps([[kind, str(path)] for kind, path in cases]), encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(REPO), "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(REPO / "tests" / "weight_worker.py"), str(listed)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(results) == len(cases), (
        f"it ended with status {done.returncode} at {cases[len(results)] if len(results) < len(cases) else ''}: "
        f"{done.stderr[-500:]}"
    )
    for (_, path), result in zip(cases, results, strict=True):
        assert result["ending"] in ERRORS | {"loaded"}, f"{path}: {result}"
        assert result["rise"] < PEAK, f"{path}: the peak of memory rose by {result['rise']:.0f} MB"
        if result["ending"] != "loaded":
            said = result["said"]
            assert str(tmp_path) in said and len(said) < 600 and "\n" not in said, f"not one sentence: {said}"
    return results


# ---- one attack at a time


def string(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def behind(data: bytes, name: str) -> int:
    """Where the entry or tensor of this name goes on behind it."""
    place = data.index(string(name)) + len(string(name))
    assert data.count(string(name)) == 1
    return place


def put(data: bytes, place: int, code: str, *values) -> bytes:
    new = struct.pack(f"<{code}", *values)
    return data[:place] + new + data[place + len(new) :]


def with_entry(entry: bytes):
    """One more metadata entry, in front."""

    def change(data):
        data = put(data, 16, "Q", struct.unpack("<Q", data[16:24])[0] + 1)
        padded = entry
        return data[:24] + padded + data[24:]

    return change


def value(name, code, new):
    """Another number behind the type of a metadata entry."""
    return lambda data: put(data, behind(data, name) + 4, code, new)


def tensor(name, at, code, *new):
    """Other numbers in what is said of a tensor: its number of dimensions at 0, 4 the sizes, 20 type, 24 offset."""
    return lambda data: put(data, behind(data, name) + at, code, *new)


def entry(name, kind, data):
    return with_entry(string(name) + struct.pack("<I", kind) + data)


def renamed(old, new):
    assert len(old) == len(new)
    return lambda data: data.replace(string(old), string(new))


L = "llama."
Q, DOWN = "blk.0.attn_q.weight", "blk.1.ffn_down.weight"
NESTED = b"".join(struct.pack("<IQ", 9, 1) for _ in range(1000)) + struct.pack("<IQB", 0, 1, 7)
GGUF_ATTACKS = {
    "empty": (lambda data: b"", "should take 4 bytes, but 0 are left"),
    "magic": (lambda data: b"GGML" + data[4:], "begins with b'GGUF', this one with b'GGML'"),
    "version 1": (lambda data: put(data, 4, "I", 1), "GGUF version 1 is not among"),
    "big-endian": (lambda data: put(data, 4, "I", 3 << 24), "GGUF version 50331648"),
    "2**63 tensors": (lambda data: put(data, 8, "Q", 2**63), "is 9,223,372,036,854,775,808, which the"),
    "2**20 tensors": (lambda data: put(data, 8, "Q", 2**20), "the number of tensors is 1,048,576, which"),
    "one tensor fewer": (lambda data: put(data, 8, "Q", 19), "begins at byte 0 of the data|would end|missing|not"),
    "one tensor more": (lambda data: put(data, 8, "Q", 21), "but|UTF-8|dimensions|names"),
    "2**63 entries": (lambda data: put(data, 16, "Q", 2**63), "the number of metadata entries is 9,223"),
    "a name of 2**62 bytes": (lambda data: put(data, 24, "Q", 2**62), "should take 4,611,686,018,427,387,904"),
    "a text of 2**62 bytes": (value("general.architecture", "Q", 2**62), "but [0-9,]+ are left"),
    "a name that is not UTF-8": (
        entry(b"\xff\xfe", 4, struct.pack("<I", 1)),
        "name of a metadata entry is not UTF-8 at byte 0 of 2",
    ),
    "2**40 items": (entry("x", 9, struct.pack("<IQ", 0, 2**40)), "the length of 'x' is 1,099,511,627,776"),
    "2**61 items of 8": (entry("x", 9, struct.pack("<IQ", 10, 2**61)), "cannot hold"),
    "2**61 texts": (entry("x", 9, struct.pack("<IQ", 8, 2**61)), "cannot hold"),
    "1000 arrays in each other": (entry("x", 9, NESTED), "'x' is an array of type 9; arrays hold numbers or"),
    "items of type 99": (entry("x", 9, struct.pack("<IQ", 99, 1)), "'x' is an array of type 99"),
    "a value of type 13": (entry("x", 13, b"1234"), "'x' has type 13, known are 0 to 12"),
    "an entry twice": (entry(L + "block_count", 4, struct.pack("<I", 2)), "'llama.block_count' twice"),
    "alignment 0": (entry("general.alignment", 4, struct.pack("<I", 0)), "a power of 2, got 0"),
    "alignment 48": (entry("general.alignment", 4, struct.pack("<I", 48)), "a power of 2, got 48"),
    "alignment 2**31": (entry("general.alignment", 4, struct.pack("<I", 2**31)), "a power of 2, got 2147483648"),
    "alignment as text": (entry("general.alignment", 8, string("32")), "a power of 2, got '32'"),
    "no dimensions": (tensor(Q, 0, "I", 0), "has 0 dimensions, not 1 to 4"),
    "5 dimensions": (tensor(Q, 0, "I", 5), "has 5 dimensions, not 1 to 4"),
    "2**32 - 1 dimensions": (tensor(Q, 0, "I", 2**32 - 1), "has 4294967295 dimensions"),
    "a product beyond 2**64": (tensor(Q, 4, "QQ", 2**32, 2**32), "would end at byte"),
    "a product of 2**64": (tensor(Q, 4, "QQ", 2**63, 2), "would end at byte"),
    "a size of 0": (tensor(Q, 4, "Q", 0), "each size should be at least 1"),
    "rows that are no blocks": (tensor(Q, 4, "Q", 63), "has rows of 63, not blocks of 32"),
    "more rows than bytes": (tensor(Q, 12, "Q", 2**30), "would end at byte"),
    "sizes swapped": (tensor(DOWN, 4, "QQ", 64, 96), r"has shape \(96, 64\), the model needs \(64, 96\)"),
    "a type of tensor 77": (tensor(Q, 20, "I", 77), "is of type 77, which is unknown"),
    "a type of tensor no more": (tensor(Q, 20, "I", 4), "is of type 4, which is unknown"),
    "a type that is no number": (tensor("output_norm.weight", 12, "I", 26), "is of type I32, which cannot"),
    "an offset beyond the file": (tensor(Q, 24, "Q", 2**40), "begins at byte 1,099,511,627,776 of the data"),
    "an offset near 2**64": (tensor(Q, 24, "Q", 2**64 - 32), "of the data, not"),
    "overlapping tensors": (tensor(Q, 24, "Q", 0), "begins at byte 0 of the data, not"),
    "two tensors of a name": (renamed("blk.1.attn_k.weight", "blk.0.attn_k.weight"), "two tensors named"),
    "a tensor of another name": (renamed("blk.1.attn_k.weight", "blk.1.attn_k.banana"), "attn_k.banana"),
    "biases": (renamed("blk.1.attn_norm.weight", "blk.1.attn_q.biasbias."), "1 do not belong"),
    "cut in the data": (lambda data: data[:-100], "would end at byte"),
    "cut by a byte": (lambda data: data[: len(data) - 32 - len(data) % 32], "would end at byte"),
    "another architecture": (lambda data: data.replace(string("llama"), string("gpt2x")), "is 'gpt2x', only 'llama'"),
    "no heads": (value(L + "attention.head_count", "I", 0), "head_count should be a whole number of at least 1"),
    "no kv heads": (value(L + "attention.head_count_kv", "I", 0), "head_count_kv should be a whole number"),
    "3 kv heads": (value(L + "attention.head_count_kv", "I", 3), "4 query heads cannot share 3"),
    "8 kv heads": (value(L + "attention.head_count_kv", "I", 8), "4 query heads cannot share 8"),
    "4 kv heads": (value(L + "attention.head_count_kv", "I", 4), r"has shape \(32, 64\), the model needs \(64, 64\)"),
    "7 heads": (value(L + "attention.head_count", "I", 7), "7 query heads cannot share 2"),
    "2 heads": (value(L + "attention.head_count", "I", 2), "has shape|dimension_count is 16, a head has 32"),
    "10**9 layers": (value(L + "block_count", "I", 10**9), "1,000,000,000 layers cannot be in a file of 20"),
    "no layers": (value(L + "block_count", "I", 0), "block_count should be a whole number of at least 1, got 0"),
    "1 layer": (value(L + "block_count", "I", 1), "9 do not belong to such a model"),
    "3 layers": (value(L + "block_count", "I", 3), "9 tensors are missing"),
    "a width of 2**32 - 4": (value(L + "embedding_length", "I", 2**32 - 4), "a head has|has shape"),
    "a hidden layer of 2**32 - 1": (value(L + "feed_forward_length", "I", 2**32 - 1), "the model needs"),
    "2**32 - 1 positions": (value(L + "context_length", "I", 2**32 - 1), "is larger than 16,777,216 numbers"),
    "no positions": (value(L + "context_length", "I", 0), "context_length should be a whole number"),
    "another vocabulary": (value(L + "vocab_size", "I", 51), "llama.vocab_size counts 51 tokens, token_embd.weight 50"),
    "another list of tokens": (
        lambda data: data.replace(string("tokenizer.ggml.tokens"), string("tokenizer.ggml.monkey")).replace(
            string("tokenizer.ggml.token_type"), string("tokenizer.ggml.tokens")[8:].join([struct.pack("<Q", 25), b"...."])
        ),
        None,
    ),
    "eps negative": (value(L + "attention.layer_norm_rms_epsilon", "f", -1e-5), "above 0 and at most 1, got -"),
    "eps 0": (value(L + "attention.layer_norm_rms_epsilon", "f", 0), "above 0 and at most 1, got 0.0"),
    "eps nan": (value(L + "attention.layer_norm_rms_epsilon", "f", np.nan), "got nan"),
    "eps infinite": (value(L + "attention.layer_norm_rms_epsilon", "f", np.inf), "got inf"),
    "rotary base 0": (value(L + "rope.freq_base", "f", 0), r"freq_base should be above 1 and at most 1e\+12, got 0.0"),
    "rotary base nan": (value(L + "rope.freq_base", "f", np.nan), "got nan"),
    "half a head turned": (value(L + "rope.dimension_count", "I", 8), "dimension_count is 8, a head has 16"),
    "long heads": (entry(L + "attention.key_length", 4, struct.pack("<I", 2**31)), "2147483648|numbers"),
    "odd heads": (entry(L + "attention.key_length", 4, struct.pack("<I", 17)), "should be even, it has 17"),
    "other heads for values": (
        entry(L + "attention.value_length", 4, struct.pack("<I", 8)),
        "value_length is 8, a head has 16",
    ),
    "heads by layer": (
        renamed_entry := entry(L + "expert_count", 9, struct.pack("<IQII", 4, 2, 8, 8)),
        r"expert_count is \[8, 8\], only 0 is supported",
    ),
    "experts": (entry(L + "expert_count", 4, struct.pack("<I", 8)), "expert_count is 8, only 0 is supported"),
    "scaled positions": (entry(L + "rope.scaling.type", 8, string("linear")), "type is 'linear', only 'none'"),
    "a window": (
        entry(L + "attention.sliding_window", 4, struct.pack("<I", 4096)),
        "sliding_window asks for something that is not supported",
    ),
    "a size as text": (
        lambda data: entry(L + "block_count", 8, string("2"))(data.replace(string(L + "block_count"), string(L + "block_c0unt"))),
        "block_count should be a whole number of at least 1, got '2'",
    ),
    "no number of layers": (renamed(L + "block_count", "other.block_count"[:17]), "llama.block_count is missing"),
    "nan in the data": (lambda data: data[:-32] + struct.pack("<8f", *[1.0] * 7, np.nan), "1 of 64 numbers are not finite"),
}
