"""transformers on PyTorch with SmolLM2 as a contender; needs the [oracle] extra."""

import os
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # no bars while the file is read

import torch
import transformers

from shapes import summary
from theirs import Clock


class Chat:
    """The same file, its weights in float32 as ours."""

    def __init__(self, file: str):
        folder, name = Path(file).parent, Path(file).name
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        self.model = model.eval()

    def generate(self, prompt: list, new: int) -> dict:
        """A greedy generation of `new` tokens after the prompt's, with the cache that is its default."""
        tokens = torch.tensor([prompt])
        mask, clock = torch.ones_like(tokens), Clock()
        options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": new, "streamer": clock}
        with torch.inference_mode():
            self.model.generate(tokens, attention_mask=mask, min_new_tokens=new, **options)
        return summary(clock.seconds[1:], clock.tokens[1:])
