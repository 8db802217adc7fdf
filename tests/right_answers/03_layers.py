"""Right answers to module 03."""

from right_answers import Right

RIGHT = [
    Right(
        name="einsum, generators, reduce",
        bodies={
            "linear": """
                y = np.einsum("...i,oi->...o", x, weight)
                return y if bias is None else y + bias
            """,
            "Module.named_parameters": """
                own = [(prefix + name, v) for name, v in vars(self).items() if isinstance(v, Tensor)]
                below = [
                    pair
                    for name, child in self.children()
                    for pair in child.named_parameters(prefix=prefix + name + ".")
                ]
                return iter(own + below)
            """,
            "Module.parameters": """
                seen, found = set(), []
                for _, weight in self.named_parameters():
                    if id(weight) not in seen:
                        seen.add(id(weight))
                        found.append(weight)
                return found
            """,
            "Module.train": """
                waiting = [self]
                while waiting:
                    module = waiting.pop()
                    module.training = mode
                    waiting.extend(child for _, child in module.children())
                return self
            """,
            "Linear.__init__": """
                bound = in_features**-0.5
                self.weight = Tensor(
                    rng.uniform(low=-bound, high=bound, size=[out_features, in_features]), requires_grad=True
                )
                self.bias = None
                if bias:
                    self.bias = Tensor(np.zeros((out_features,), dtype=np.float32), requires_grad=True)
            """,
            "Sequential.forward": """
                from functools import reduce

                return reduce(lambda value, layer: layer(value), self.layers, x)
            """,
            "Dropout.forward": """
                if self.training and self.p > 0:
                    scale = np.where(self.rng.random(x.shape) < self.p, 0, 1 / (1 - self.p))
                    return apply(np.multiply, x, scale.astype(np.float32))
                return x
            """,
            "check_state": """
                names, others = set(own), set(state)
                if names != others:
                    lacking, strange = sorted(names - others), sorted(others - names)
                    raise ValueError(
                        f"{len(lacking)} missing: {lacking[:3]}; {len(strange)} unknown: {strange[:3]}"
                    )
                for name in own:
                    arrays[name] = np.asarray(state[name])
                    if not np.issubdtype(arrays[name].dtype, np.floating):
                        raise TypeError(f"{name} holds {arrays[name].dtype}")
                    if own[name].shape != arrays[name].shape:
                        raise ValueError(f"{name}: {arrays[name].shape} instead of {own[name].shape}")
                    bad = ~np.isfinite(arrays[name].astype(own[name].dtype))
                    if np.any(bad):
                        raise ValueError(f"{name} has {bad.sum()} numbers that are not finite of {bad.size}")
            """,
        },
    ),
    Right(
        name="matmul of Tensors, loops, recursion",
        bodies={
            "linear": """
                result = np.matmul(x, np.transpose(weight))
                if bias is not None:
                    result = np.add(result, bias)
                return result
            """,
            "Module.named_parameters": """
                attributes = self.__dict__
                for key in attributes:
                    if isinstance(attributes[key], Tensor):
                        yield f"{prefix}{key}", attributes[key]
                for key, part in self.children():
                    for inner_name, weight in part.named_parameters():
                        yield prefix + key + "." + inner_name, weight
            """,
            "Module.train": """
                def switch(module):
                    module.training = mode
                    for _, child in module.children():
                        switch(child)

                switch(self)
                return self
            """,
            "Linear.forward": """
                features = self.weight.shape[1]
                if len(x.shape) == 0 or x.shape[-1] != features:
                    raise ValueError(f"x hat die Form {x.shape}, erwartet: (..., {features})")
                weights = [self.weight] if self.bias is None else [self.weight, self.bias]
                return apply(linear, x, *weights)
            """,
            "Dropout.forward": """
                if self.p == 0 or self.training == False:
                    return x
                keep = self.rng.binomial(1, 1 - self.p, size=x.shape)
                mask = keep.astype(np.float32)
                mask /= 1 - self.p
                return apply(np.multiply, x, mask)
            """,
            "Sequential.forward": """
                out = x
                for i in range(len(self.layers)):
                    print("layer", i)
                    out = self.layers[i](out)
                return out
            """,
            "wrap_method": """
                if method[:2] == "__":
                    raise ValueError(f"{method} should not be wrapped, it begins with 2 underscores")
                original = getattr(type(owner), method, None)
                if original is None or not callable(original):
                    raise ValueError(f"no method {method} in {type(owner)}")
                if not callable(wrapper):
                    raise TypeError(f"{wrapper} cannot be called")
                inner = getattr(owner, method)
                owner.__dict__[method] = Wrapped(wrapper, inner)
            """,
        },
    ),
]
