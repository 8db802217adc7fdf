"""SmolLM2 through our cache against transformers on the same GGUF file."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tinytorch.generation.kv_cache import KVCache, disable_kv_cache, enable_kv_cache
from tinytorch.models.llama import Llama
from tinytorch.pretrained.gguf_file import GGUFFile
from tinytorch.pretrained.tokenizer import ChatTokenizer
from toy import REPO

pytestmark = pytest.mark.oracle
NEW = 60
QUESTIONS = [
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "How many legs does a spider have?",
    "Write a short poem about the sea.",
    "What does a compiler do?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "What is 17 plus 25?",
    "Explain photosynthesis in one sentence.",
    "List the planets of the solar system.",
    "What is a prime number?",
    "How do I boil an egg?",
    "Tell me a fact about elephants.",
    "Write a Python function that reverses a string.",
    "What is the opposite of 'ancient'?",
    "Describe winter to someone who has never seen snow.",
    "Which is larger, a lake or an ocean?",
    "Give two reasons to learn mathematics.",
]


@pytest.fixture(scope="module")
def file():
    sys.path.insert(0, str(REPO / "milestones" / "06_2024_llm"))
    from model_file import installed_model

    file = installed_model()
    assert file, "SmolLM2 is not installed: `make test-oracle` installs it"
    return file


@pytest.fixture(scope="module")
def pair(file):
    """(ours, theirs), both in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, name = Path(file).parent, Path(file).name
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    return Llama.from_gguf(file), theirs.eval()


@pytest.fixture(scope="module")
def prompts(file):
    tokenizer = ChatTokenizer.from_metadata(GGUFFile(file).metadata)
    return [tokenizer.chat([{"role": "user", "content": question}]) for question in QUESTIONS]


def test_greedy_texts_and_logits_are_those_of_transformers(pair, prompts, record_property):
    """Each token that we write is transformers' likeliest after the same ones: by induction, one text."""
    import torch

    ours, theirs = pair
    cache = enable_kv_cache(ours, KVCache(1, 256, ours.num_layers, ours.num_kv_heads, ours.head_dim))
    largest, spread = 0.0, []
    try:
        for question, prompt in zip(QUESTIONS, prompts, strict=True):
            cache.reset()
            logits, text = [ours(np.array([prompt])).data[0]], list(prompt)
            for _ in range(NEW):
                text.append(int(logits[-1][-1].argmax()))
                logits.append(ours(np.array([text[-1:]])).data[0])
            with torch.inference_mode():
                want = theirs(torch.tensor([text])).logits[0].numpy()
            assert text[len(prompt) :] == want[len(prompt) - 1 : -1].argmax(axis=-1).tolist(), question
            got = np.concatenate(logits)
            assert got.dtype == np.float32
            largest = max(largest, float(np.abs(got - want).max()))
            spread.append(want.std())
    finally:
        disable_kv_cache(ours)
    record_property("largest difference of a logit", largest)
    print(f"largest difference {largest:.2g}, standard deviation of the logits {np.mean(spread):.2g}")
    assert largest < 5e-4
