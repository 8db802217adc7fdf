"""A transformer and its KV cache in NumPy, written by the student."""

__version__ = "0.1.0"
