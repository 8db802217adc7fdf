"""What bounds decoding: reading the weights once per token. And the bare products with them."""

from time import perf_counter

import numpy as np

from shapes import SHAPES, weight_numbers


class Floor:
    """As many float32 as one decoded token reads, in one matrix, and the model's matrices for themselves."""

    def __init__(self, shape: str):
        vocab, wide, layers, _ = SHAPES[shape]
        sizes = layers * (4 * [(wide, wide)] + [(4 * wide, wide), (wide, 4 * wide)]) + [(vocab, wide)]
        self.all = np.ones((weight_numbers(shape) // wide, wide), np.float32)
        self.matrices = [np.ones(size, np.float32) for size in sizes]
        self.vectors = {n: np.ones(n, np.float32) for n in (wide, 4 * wide)}

    def stream(self, new: int) -> dict:
        """One product with all weights, for each of `new` tokens -> median milliseconds."""
        return self.times(new, [self.all])

    def products(self, new: int) -> dict:
        """The products of the model's layers one after the other, nothing between them."""
        return self.times(new, self.matrices)

    def times(self, new: int, matrices: list) -> dict:
        milliseconds = []
        for _ in range(new):
            started = perf_counter()
            for matrix in matrices:
                np.dot(matrix, self.vectors[matrix.shape[1]])
            milliseconds.append(1e3 * (perf_counter() - started))
        return {"ms_per_token": float(np.median(milliseconds))}
