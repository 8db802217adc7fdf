"""Train the chat model on the dialogues, with this course's own code: interruptible, resumable, seeded."""

from pathlib import Path

import numpy as np
from chat import SPECIAL
from dialogues import load_dialogues

from tinytorch.core.dataloader import DataLoader, Dataset
from tinytorch.core.optimizers import AdamW
from tinytorch.core.training import CosineSchedule, Trainer
from tinytorch.models.transformer import GPT
from tinytorch.text.tokenization import BPETokenizer

IGNORED = -100  # targets that the loss leaves out: what the user says need not be predicted
SETTINGS = {
    "vocab_size": 768,
    "embed_dim": 128,
    "num_layers": 4,
    "num_heads": 4,
    "max_seq_len": 256,
    "batch_size": 8,
    "steps": 1200,
    "lr": 3e-3,
    "seed": 1,
}


def encode_turns(turns, tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """A conversation -> (tokens, spoken): its tokens in a row, and which of them the assistant says."""
    user, assistant, end = (tokenizer.special_tokens[name] for name in SPECIAL)
    tokens, spoken = [], []
    for question, answer in turns:
        asked = [user, *tokenizer.encode(question), assistant]
        said = [*tokenizer.encode(answer), end]
        tokens += asked + said
        spoken += [False] * len(asked) + [True] * len(said)
    return np.array(tokens), np.array(spoken)


class ConversationDataset(Dataset):
    """Sample i begins with conversation i; others, drawn by (seed, i), follow until the context is full.

    So every conversation is met at position 0, where a chat begins, and at all other positions.
    """

    def __init__(self, conversations, tokenizer, context: int, seed: int, rounds: int = 8):
        self.encoded = [encode_turns(turns, tokenizer) for turns in conversations]
        self.context, self.seed, self.rounds = context, seed, rounds

    def __len__(self):
        return len(self.encoded) * self.rounds

    def __getitem__(self, index):
        """-> (inputs, targets), (context,) ints each; targets are IGNORED where the user speaks."""
        rng = np.random.default_rng([self.seed, index])
        chosen, length = [], 0
        while length <= self.context:
            which = rng.integers(len(self.encoded)) if chosen else index % len(self.encoded)
            chosen.append(self.encoded[which])
            length += len(chosen[-1][0])
        tokens, spoken = (np.concatenate(parts)[: self.context + 1] for parts in zip(*chosen, strict=True))
        return tokens[:-1], np.where(spoken[1:], tokens[1:], IGNORED)


def train_tokenizer(conversations, vocab_size: int) -> BPETokenizer:
    """The byte-level BPE of all that is said in the training conversations."""
    text = "\n".join(text for turns in conversations for turn in turns for text in turn)
    return BPETokenizer.train(text, vocab_size, SPECIAL)


def train(settings: dict, checkpoint: Path, on_step) -> tuple[GPT, BPETokenizer]:
    """Train, or go on from `checkpoint` -> (model, tokenizer). on_step(step, loss) hears of every step.

    The checkpoint is written every 100 steps and when the training is interrupted.
    Raises ValueError if the checkpoint belongs to other settings.
    """
    conversations = load_dialogues("train")
    tokenizer = train_tokenizer(conversations, settings["vocab_size"])
    sizes = {name: settings[name] for name in ("embed_dim", "num_layers", "num_heads", "max_seq_len")}
    model = GPT(tokenizer.vocab_size, **sizes, seed=settings["seed"])
    dataset = ConversationDataset(conversations, tokenizer, settings["max_seq_len"], settings["seed"])
    loader = DataLoader(dataset, settings["batch_size"], shuffle=True, drop_last=True, seed=settings["seed"])
    optimizer = AdamW(model.parameters(), lr=settings["lr"], weight_decay=0.1)
    schedule = CosineSchedule(settings["lr"], settings["steps"], settings["steps"] // 20, settings["lr"] / 50)
    trainer = Trainer(model, optimizer, schedule=schedule, max_norm=1.0)
    if checkpoint.exists():
        trainer.load(checkpoint, loader)

    def watch(step, loss):
        on_step(step, loss)
        if step % 100 == 0:
            trainer.save(checkpoint, loader)

    try:
        trainer.fit(loader, settings["steps"], watch)
    except KeyboardInterrupt:
        trainer.save(checkpoint, loader)
        raise
    return model, tokenizer
