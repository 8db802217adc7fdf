"""GGUF, the file format of llama.cpp: a header that describes a model, and its tensors."""

# The header, all numbers little-endian (github.com/ggml-org/ggml, docs/gguf.md):
#   "GGUF", version, number of tensors, number of metadata entries
#   metadata: name, type, value   (a string: length and bytes; an array: type of its items, count, items)
#   tensors: name, number of dimensions, dimensions (fastest first), type, offset in the data
#   padding up to a multiple of the alignment, then the data, each tensor padded so, without other gaps
# Nothing in it is believed before it is checked against the bytes that are there.

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tinytorch.pretrained import need

VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
SMALLEST_ENTRY = 8 + 4 + 1  # bytes of a metadata entry: length of its name, type, value
# length of its name, number of dimensions, one of them, type, offset
SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8
MAX_HEADER = 2**25  # bytes; a vocabulary of 256,000 tokens with its merges takes 17 million
MAX_NAME = 256  # bytes
MAX_DIMENSIONS = 4
BLOCK = 2**20  # numbers dequantised at a time, so that what lies in between stays small


class Header:
    """Takes one value after the other from the front of an open file, and never more than it holds."""

    def __init__(self, file: BinaryIO, path: Path, size: int):
        self.file, self.path, self.size = file, path, size

    @property
    def left(self) -> int:
        return min(self.size, MAX_HEADER) - self.file.tell()

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.path}: {message}")

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise self.error(f"{what} should take {count:,} bytes, but {self.left:,} are left for the header")
        data = self.file.read(count)
        if len(data) != count:
            raise self.error(f"{what} should take {count:,} bytes, but the file ends after {len(data):,}")
        return data

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def count(self, what: str, smallest: int) -> int:
        """How many things follow, each of at least `smallest` bytes."""
        count = self.number("Q", what)
        if count * smallest > self.left:
            raise self.error(f"{what} is {count:,}, which the {self.left:,} bytes left cannot hold")
        return count

    def string(self, what: str, longest: int = MAX_HEADER) -> str:
        count = self.number("Q", f"the length of {what}")
        if count > longest:
            raise self.error(f"{what} should take {count:,} bytes, more than {longest:,}")
        data = self.take(count, what)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 at byte {error.start} of {len(data)}") from error

    def value(self, kind: int, what: str) -> Any:
        """A number, a bool, a string, or a list of them."""
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind == STRING:
            return self.string(what)
        if kind != ARRAY:
            raise self.error(f"{what} has type {kind}, known are 0 to 12")
        kind = self.number("I", f"the type of the items of {what}")
        if kind == STRING:
            return [self.string(what) for _ in range(self.count(f"the length of {what}", 8))]
        if kind not in SCALARS:
            raise self.error(f"{what} is an array of type {kind}; arrays hold numbers or strings")
        code, size = SCALARS[kind], struct.calcsize(f"<{SCALARS[kind]}")
        count = self.count(f"the length of {what}", size)
        return list(struct.unpack(f"<{count}{code}", self.take(count * size, what)))


@dataclass(frozen=True)
class TensorInfo:
    shape: tuple  # as NumPy sees it: (out, in)
    kind: object  # a GGMLQuantizationType
    offset: int  # of its first byte, from the start of the file
    num_bytes: int


class GGUFFile:
    """A GGUF file: its metadata, and its tensors one at a time.

    path: where it is. metadata: name -> number, bool, string or list. shapes: name -> shape of each tensor.
    The header is read at once, a tensor when it is asked for.
    """

    def __init__(self, path: str | Path):
        """Raises FileNotFoundError, ModuleNotFoundError without the [llm] extra, ValueError for a file that
        is damaged, of another format, or claims to hold what its bytes cannot."""
        need("gguf")
        self.path = Path(path)
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = Header(file, self.path, size)
            num_tensors = self._read_beginning(header)
            self.metadata = self._read_metadata(header)
            self.infos = self._read_infos(header, num_tensors)
        self.shapes = {name: info.shape for name, info in self.infos.items()}

    def tensor(self, name: str) -> np.ndarray:
        """-> the tensor in float32. Raises ValueError if there is none, or its type cannot be read."""
        if name not in self.infos:
            raise ValueError(f"{self.path}: there is no tensor {name} among its {len(self.infos)}")
        info = self.infos[name]
        array = np.empty(info.shape, np.float32)
        rows = array.reshape(-1, info.shape[-1])
        row_bytes = info.num_bytes // len(rows)
        step = max(1, BLOCK // info.shape[-1])
        with open(self.path, "rb") as file:
            file.seek(info.offset)
            for start in range(0, len(rows), step):
                block = rows[start : start + step]
                data = np.fromfile(file, np.uint8, len(block) * row_bytes)
                if data.size != len(block) * row_bytes:
                    raise ValueError(f"{self.path}: the file ends inside the tensor {name}")
                block[...] = self._dequantise(data.reshape(len(block), row_bytes), name, info.kind)
        return array

    def _dequantise(self, data: np.ndarray, name: str, kind) -> np.ndarray:
        try:
            with np.errstate(all="ignore"):  # damaged numbers become inf or nan; who uses them looks
                return need("gguf").quants.dequantize(data, kind)
        except NotImplementedError as error:
            raise ValueError(f"{self.path}: {name} is of type {kind.name}, which cannot be read") from error

    def _read_beginning(self, header: Header) -> int:
        """-> the number of tensors; the number of metadata entries comes next."""
        magic = header.take(4, "the magic number")
        if magic != b"GGUF":
            raise header.error(f"a GGUF file begins with b'GGUF', this one with {magic!r}")
        version = header.number("I", "the version")
        if version not in VERSIONS:
            raise header.error(f"GGUF version {version} is not among those that can be read, {VERSIONS}")
        return header.count("the number of tensors", SMALLEST_TENSOR)

    def _read_metadata(self, header: Header) -> dict[str, object]:
        metadata = {}
        for _ in range(header.count("the number of metadata entries", SMALLEST_ENTRY)):
            name = header.string("the name of a metadata entry", MAX_NAME)
            if name in metadata:
                raise header.error(f"the metadata hold {name!r} twice")
            metadata[name] = header.value(header.number("I", f"the type of {name!r}"), repr(name))
        return metadata

    def _read_infos(self, header: Header, count: int) -> dict[str, TensorInfo]:
        found = {}
        for _ in range(count):
            name = header.string("the name of a tensor", MAX_NAME)
            if name in found:
                raise header.error(f"there are two tensors named {name!r}")
            num_dimensions = header.number("I", f"the number of dimensions of {name!r}")
            if not 1 <= num_dimensions <= MAX_DIMENSIONS:
                raise header.error(
                    f"{name!r} has {num_dimensions} dimensions, 1 to {MAX_DIMENSIONS} are allowed"
                )
            shape = [header.number("Q", f"a dimension of {name!r}") for _ in range(num_dimensions)][::-1]
            kind = header.number("I", f"the type of {name!r}")
            found[name] = (tuple(shape), kind, header.number("Q", f"the offset of {name!r}"))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= MAX_HEADER or alignment & (alignment - 1):
            raise header.error(f"the alignment should be a power of 2, got {alignment!r}")
        data_start = place = round_up(header.file.tell(), alignment)
        infos = {}
        for name, (shape, kind, offset) in found.items():  # one after the other, without a gap
            infos[name] = self._check_info(header, name, shape, kind, place)
            if data_start + offset != place:
                raise header.error(
                    f"{name!r} begins at byte {offset:,} of the data, not {place - data_start:,}"
                )
            place = round_up(place + infos[name].num_bytes, alignment)
        return infos

    def _check_info(self, header: Header, name: str, shape: tuple, kind: int, start: int) -> TensorInfo:
        gguf = need("gguf")
        if min(shape) < 1:
            raise header.error(f"{name!r} has shape {shape}, each size should be at least 1")
        try:
            kind = gguf.GGMLQuantizationType(kind)
            block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise header.error(f"{name!r} is of type {kind}, which is unknown") from error
        if shape[-1] % block_size:
            raise header.error(f"{name!r} has rows of {shape[-1]}, not blocks of {block_size} ({kind.name})")
        num_bytes = math.prod(shape) // block_size * block_bytes
        if start + num_bytes > header.size:
            raise header.error(
                f"{name!r} would end at byte {start + num_bytes:,}, the file at {header.size:,}"
            )
        return TensorInfo(shape, kind, start, num_bytes)


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step
