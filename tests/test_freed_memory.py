"""Training keeps freed memory: seen from the pages that the system hands out anew."""

import platform
import subprocess
import sys

from tinytorch.core.training import keep_freed_memory

FAULTS = """
import resource
import numpy as np
from tinytorch.core.training import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        [np.ones(500_000, np.float32) for _ in range(20)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before, kept = faults(), keep_freed_memory()
faults()
print(int(kept), before, faults())
"""


def test_freed_memory_is_kept_where_there_is_glibc():
    if platform.libc_ver()[0] != "glibc":
        assert keep_freed_memory() is False
        return
    said = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    kept, before, after = map(int, said.split())
    assert kept == 1
    assert after < before / 10, f"{before} new pages before, {after} afterwards"
