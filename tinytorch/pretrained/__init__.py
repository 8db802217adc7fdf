"""Weights of published models: files in, models out, and back. Written by hand, not exported."""

import importlib
from types import ModuleType


def need(library: str) -> ModuleType:
    """-> the imported library; ModuleNotFoundError in one sentence if it is not installed."""
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'reading and writing published weights needs {error.name}: pip install -e ".[llm]"',
            name=error.name,
        ) from error
