"""The benchmark of continuous batching: its requests, how it counts, both of its ways on a small model."""

import numpy as np

from batching import ALONE, NEW, PROMPT, mixed_requests, same_tokens
from batching_ours import Serving
from tinytorch.models.llama import Llama


def test_the_requests_are_mixed_and_the_same_every_time():
    requests = mixed_requests(16, NEW[1])
    assert requests == mixed_requests(16, NEW[1])
    lengths, new = [len(prompt) for prompt, _ in requests], [new for _, new in requests]
    assert PROMPT[0] <= min(lengths) < 60 and 200 < max(lengths) <= PROMPT[1]
    assert NEW[0] <= min(new) < 40 and 100 < max(new) <= NEW[1]
    assert all(n <= 5 for _, n in mixed_requests(16, 5))


def test_tokens_count_up_to_the_first_that_differs():
    assert same_tokens([[1, 2, 3], [4, 5]], [[1, 2, 3], [4, 5]]) == 5
    assert same_tokens([[1, 2, 3], [4, 5]], [[1, 9, 3], [4, 5]]) == 3
    assert same_tokens([[1, 2, 3], [4, 5]], [[9, 2, 3], [4, 9]]) == 1


def test_both_ways_write_the_same_tokens():
    serving = Serving.__new__(Serving)
    serving.model = Llama(60, 12, 2, 6, 2, max_seq_len=80, seed=0)
    rng = np.random.default_rng(1)
    for p in serving.model.parameters():
        p.data += rng.normal(0, 0.3, p.shape)
    requests = [(prompt[:40], new) for prompt, new in mixed_requests(5, 20)]
    requests = [([token % 60 for token in prompt], new) for prompt, new in requests]
    alone = serving.one_at_a_time(requests)
    assert [len(text) for text in alone["tokens"]] == [new for _, new in requests], ALONE
    for rows in (1, 4):
        together = serving.in_a_batch(requests, max_requests=rows, chunk=16)
        assert together["tokens"] == alone["tokens"]
        assert together["tokens_per_second"] > 0 and together["first_ms"] > 0
        least = sum(new for _, new in requests) if rows == 1 else max(new for _, new in requests)
        assert together["steps"] >= least
