"""safetensors, the file format of Hugging Face: one file or several, and the config.json beside them."""

# A file is the length of its header (8 bytes), the header (JSON: name -> dtype, shape, where its bytes begin
# and end in the data) and the data. The safetensors library checks that this is so; its arrays are NumPy's,
# which has no bfloat16, so the numbers are read here.

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tinytorch.pretrained import need

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
BLOCK = 2**20  # numbers converted at a time
MAX_JSON = 2**22  # bytes of a header, an index or a config; the largest of a Llama-8B takes 40,000
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


def once_each(pairs: list[tuple]) -> dict:
    """Of two entries with one name, one reader takes the first and another the last: neither is right."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"of {len(pairs)} names in an object only {len(found)} are different")
    return found


def parse_json(data: bytes, path: Path) -> dict:
    """The object that the JSON text holds; ValueError if it holds none."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deep
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} should hold a JSON object, it holds a {type(value).__name__}")
    return value


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises FileNotFoundError, ValueError."""
    with path.open("rb") as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise ValueError(f"{path} is larger than {MAX_JSON:,} bytes")
    return parse_json(data, path)


class SafetensorsFile:
    """One file. shapes: name -> shape. The header is read at once, a tensor when it is asked for."""

    def __init__(self, path: str | Path):
        """Raises FileNotFoundError, ModuleNotFoundError without the [llm] extra, ValueError for a file that
        is damaged or of another format."""
        library = need("safetensors")
        self.path = Path(path)
        with open(self.path, "rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            data_size = os.fstat(file.fileno()).st_size - 8 - header_size
            if header_size > MAX_JSON or data_size < 0:
                raise ValueError(f"{self.path}: a header of {header_size:,} bytes is not in this file")
            try:
                with library.safe_open(self.path, framework="np"):
                    pass
            except library.SafetensorError as error:
                raise ValueError(
                    f"{self.path} is not a whole safetensors file: {str(error)[:200]!r}"
                ) from error
            header = parse_json(file.read(header_size), self.path)
        header.pop("__metadata__", None)
        self.infos, self.data_start = header, 8 + header_size
        self.shapes = {name: tuple(info["shape"]) for name, info in header.items()}

    def tensor(self, name: str) -> np.ndarray:
        """-> the tensor in float32. Raises ValueError if it is of another type than those of DTYPES."""
        info = self.infos[name]
        if info["dtype"] not in DTYPES:
            raise ValueError(f"{self.path}: {name} holds {info['dtype']}, not one of {', '.join(DTYPES)}")
        dtype: Any = DTYPES[info["dtype"]]
        size = math.prod(info["shape"])
        numbers = np.empty(size, np.float32)
        with open(self.path, "rb") as file:
            file.seek(self.data_start + info["data_offsets"][0])
            for start in range(0, size, BLOCK):
                block = numbers[start : start + BLOCK]
                data = np.fromfile(file, dtype, len(block))
                if len(data) != len(block):
                    raise ValueError(f"{self.path}: the file ends inside the tensor {name}")
                if info["dtype"] == "BF16":  # the upper half of a float32
                    data = (data.astype(np.uint32) << 16).view(np.float32)
                block[...] = data
        return numbers.reshape(info["shape"])


class SafetensorsFolder:
    """The tensors of a folder: of model.safetensors, or of the files that its index names."""

    def __init__(self, folder: str | Path):
        """Raises FileNotFoundError if there are none, ValueError as SafetensorsFile and for a bad index."""
        self.path = Path(folder)
        if (self.path / WEIGHTS).exists():
            file = SafetensorsFile(self.path / WEIGHTS)
            self.files = dict.fromkeys(file.shapes, file)
        elif (self.path / INDEX).exists():
            self.files = self._read_index()
        else:
            raise FileNotFoundError(f"{self.path} holds neither {WEIGHTS} nor {INDEX}")
        self.shapes = {name: file.shapes[name] for name, file in self.files.items()}

    def tensor(self, name: str) -> np.ndarray:
        return self.files[name].tensor(name)

    def _read_index(self) -> dict[str, SafetensorsFile]:
        """name of a tensor -> the file that holds it."""
        index = self.path / INDEX
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise ValueError(f"{index}: weight_map should say for each tensor in which file it is")
        for place in set(places.values()):
            plain = not {"/", "\\", ":", "\0"} & set(place) and place.endswith(".safetensors")
            if not plain:
                raise ValueError(
                    f"{index}: {place!r:.99} is not the name of a .safetensors file in this folder"
                )
        files = {place: SafetensorsFile(self.path / place) for place in sorted(set(places.values()))}
        for name, place in places.items():
            if name not in files[place].shapes:
                held = f"the {len(files[place].shapes)} tensors of {place}"
                raise ValueError(f"{index}: {name!r:.99} is not among {held}")
        return {name: files[place] for name, place in places.items()}


def save_folder(folder: str | Path, config: dict, tensors: dict[str, np.ndarray]) -> None:
    """Write config.json and model.safetensors into the folder, which may be new: both, or none of them.

    Each replaces what was there in one step.
    """
    need("safetensors")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    beside = {name: folder / f".{name}.{os.getpid()}.tmp" for name in (CONFIG, WEIGHTS)}
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        beside[CONFIG].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        need("safetensors.numpy").save_file(arrays, beside[WEIGHTS], metadata={"format": "pt"})
        shutil.copymode(beside[CONFIG], beside[WEIGHTS])  # the library makes it readable for its owner alone
        for path in beside.values():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        for name in (WEIGHTS, CONFIG):
            os.replace(beside[name], folder / name)
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)
