"""Opens weight files that may be damaged, one after the other, with little memory and time: run as a process.

    python tests/weight_worker.py LIST

LIST: a JSON list of [kind, path], kind being gguf, llama or gpt. One line of JSON comes back for each: how it
ended, in which time, and how far the peak of memory had risen since the start.
"""

import hashlib
import json
import resource
import signal
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import safetensors

from memory import peak_bytes
from tinytorch.models.llama import Llama
from tinytorch.models.transformer import GPT

OPEN = {"gguf": Llama.from_gguf, "llama": Llama.from_pretrained, "gpt": GPT.from_pretrained}
MEMORY = 2**28  # bytes above what the process has at the start
SECONDS = 5  # for one file


class TooSlow(BaseException):
    pass


def peak() -> float:
    """Megabytes."""
    return peak_bytes() / 1e6


def digest(model) -> str:
    """Of all weights and of the sizes that are no shapes."""
    digest = hashlib.sha256()
    for name, array in model.state_dict().items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise AssertionError(f"{name} is not made of finite float32 numbers")
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()


def open_one(kind: str, path: str) -> dict:
    start = time.perf_counter()
    signal.alarm(SECONDS)
    try:
        model = OPEN[kind](path)
        ending = {"ending": "loaded", "digest": digest(model)}
    except BaseException as error:  # what it was is for the test to judge
        ending = {"ending": type(error).__name__, "said": str(error)}
    finally:
        signal.alarm(0)
    return ending | {"seconds": time.perf_counter() - start}


def main() -> None:
    def stop(*_):
        raise TooSlow(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    assert gguf and safetensors  # imported before memory is limited
    if (
        sys.platform == "linux"
    ):  # elsewhere nothing says how much there is; the rise of the peak is told anyway
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = peak()
    for kind, path in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        print(json.dumps(open_one(kind, path) | {"rise": peak() - before}), flush=True)


main()
