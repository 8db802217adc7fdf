"""Right answers to module 09."""

from right_answers import Right

RIGHT = [
    Right(
        name="var and mean of NumPy, einsum for the sums",
        bodies={
            "layer_norm": """
                mean = np.mean(x, axis=-1, keepdims=True)
                variance = np.var(x, axis=-1, keepdims=True)
                return (x - mean) / np.sqrt(variance + eps) * weight + bias
            """,
            "layer_norm_gradients": """
                C = x.shape[-1]
                mean = x.mean(-1, keepdims=True)
                inverse = (x.var(-1, keepdims=True) + eps) ** -0.5
                normal = (x - mean) * inverse
                g = grad * weight
                sums = np.einsum("...c->...", g)[..., None]
                dots = np.einsum("...c,...c->...", g, normal)[..., None]
                return [inverse / C * (C * g - sums - normal * dots), normal * grad, grad]
            """,
            "LayerNorm.__init__": """
                shape = (embed_dim,)
                self.weight, self.bias = (
                    Tensor(np.full(shape, value, dtype=np.float32), requires_grad=True) for value in (1, 0)
                )
            """,
            "LayerNorm.forward": """
                C = len(self.weight)
                if len(x.shape) < 1 or x.shape[-1] != C:
                    raise ValueError(f"x {x.shape} should end in {C}")
                return apply(layer_norm, x, self.weight, self.bias, eps=self.eps)
            """,
            "rms_norm": "return x * weight / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)",
            "rms_norm_gradients": """
                inverse = (np.mean(np.square(x), axis=-1, keepdims=True) + eps) ** -0.5
                normal = x * inverse
                g = weight * grad
                return inverse * (g - normal * (g * normal).mean(axis=-1, keepdims=True)), normal * grad
            """,
        },
    ),
    Right(
        name="row by row",
        bodies={
            "layer_norm": """
                import sys  # noqa: F401

                breite = x.shape[-1]
                zeilen = x.reshape(-1, breite)
                ergebnis = np.empty_like(zeilen)
                for i in range(zeilen.shape[0]):
                    zeile = zeilen[i]
                    mittel = zeile.mean()
                    abstand = zeile - mittel
                    varianz = (abstand * abstand).mean()
                    ergebnis[i] = abstand / np.sqrt(varianz + eps) * weight + bias
                return ergebnis.reshape(x.shape)
            """,
            "rms_norm": """
                rows = x.reshape(-1, x.shape[-1])
                out = [row / np.sqrt((row**2).mean() + eps) * weight for row in rows]
                return np.array(out, dtype=x.dtype).reshape(x.shape)
            """,
            "rms_norm_gradients": """
                wurzel = np.sqrt(mean_square(x) + eps)
                n = x / wurzel
                g = grad * weight
                summe = np.sum(g * n, axis=-1, keepdims=True)
                dx = g - n * summe / x.shape[-1]
                dx = dx / wurzel
                dweight = grad * n
                return [dx, dweight]
            """,
            "RMSNorm.forward": """
                if x.shape == () or x.shape[-1] != self.weight.shape[0]:
                    raise ValueError(f"{x.shape} should end in {self.weight.shape[0]}")
                print("rms", x.shape)
                return apply(rms_norm, x, self.weight, eps=self.eps)
            """,
        },
    ),
]
