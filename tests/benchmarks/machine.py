"""What the figures were measured on."""

import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from tinytorch.profiling.profiler import Machine


def cpu_model() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    """Its version, None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Facts:
    """A contender without a race: it tells the machine and measures its two peaks."""

    def run(self) -> dict:
        peaks = Machine.measure()
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return {
            "date": date.today().isoformat(),
            "platform": platform.platform(terse=True),
            "cpu": cpu_model(),
            "cpus": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            "threads": int(os.environ["OPENBLAS_NUM_THREADS"]),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "blas": f"{blas['name']} {blas['version']}",
            "torch": installed("torch"),
            "transformers": installed("transformers"),
            "bandwidth_gb_per_second": round(peaks.bytes_per_second / 1e9, 2),
            "gemm_gflop_per_second": round(peaks.flops_per_second / 1e9, 1),
        }
