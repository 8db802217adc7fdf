"""The way in: from published files to models, and back."""

from tinytorch.pretrained.gpt2 import load_gpt_folder, save_gpt_folder
from tinytorch.pretrained.llama import load_llama_folder, load_llama_gguf

__all__ = ["load_gpt_folder", "load_llama_folder", "load_llama_gguf", "save_gpt_folder"]
