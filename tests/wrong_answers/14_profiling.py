"""Wrong answers to module 14: how measurements fool, and how counts go wrong."""

from wrong_answers import Wrong

WRONG = [
    # time
    Wrong(
        name="the mean instead of the median",
        part="test-time",
        old="float(np.median(seconds))",
        new="float(np.mean(seconds))",
    ),
    Wrong(
        name="no warm-up",
        part="test-time",
        old="        for _ in range(self.warmup):\n            function(*args, **options)\n        seconds = []\n",
        new="        seconds = []\n",
    ),
    Wrong(
        name="the warm-up is measured too",
        part="test-time",
        old="        for _ in range(self.repeats):\n            start",
        new="        for _ in range(self.warmup + self.repeats):\n            start",
    ),
    Wrong(
        name="one warm-up call whatever was asked for",
        part="test-time",
        old="        for _ in range(self.warmup):\n            function(*args, **options)\n        seconds = []\n",
        new="        function(*args, **options)\n        seconds = []\n",
    ),
    Wrong(
        name="another clock than the profiler's",
        part="test-time",
        old="            start = self.clock()\n            function(*args, **options)\n            seconds.append(self.clock() - start)\n",
        new="            start = time.perf_counter()\n            function(*args, **options)\n            seconds.append(time.perf_counter() - start)\n",
    ),
    Wrong(
        name="lowest and highest exchanged",
        part="test-time",
        old="float(min(seconds)), float(max(seconds))",
        new="float(max(seconds)), float(min(seconds))",
    ),
    Wrong(
        name="the clock is started once",
        part="test-time",
        old="        for _ in range(self.repeats):\n            start = self.clock()\n",
        new="        start = self.clock()\n        for _ in range(self.repeats):\n",
    ),
    Wrong(
        name="the upper one of two middle values",
        part="test-time",
        old="float(np.median(seconds))",
        new="float(sorted(seconds)[len(seconds) // 2])",
    ),
    Wrong(
        name="arguments by name are lost",
        part="test-time",
        old="            start = self.clock()\n            function(*args, **options)\n",
        new="            start = self.clock()\n            function(*args)\n",
    ),
    # memory
    Wrong(
        name="the peak includes what was there before",
        part="test-memory",
        old="Memory(peak - before, after - before)",
        new="Memory(peak, after)",
    ),
    Wrong(
        name="the result is gone before it is counted",
        part="test-memory",
        old="            result = function(*args, **options)\n",
        new="            function(*args, **options)\n            result = None\n",
    ),
    Wrong(
        name="the size now instead of the peak",
        part="test-memory",
        old="Memory(peak - before, after - before)",
        new="Memory(after - before, after - before)",
    ),
    Wrong(
        name="an earlier peak is reported",
        part="test-memory",
        old="            tracemalloc.reset_peak()\n",
        new="",
    ),
    Wrong(
        name="tracing goes on for ever",
        part="test-memory",
        old="            if not tracing:\n                tracemalloc.stop()\n",
        new="            pass\n",
    ),
    Wrong(
        name="somebody else's tracing is stopped",
        part="test-memory",
        old="            if not tracing:\n                tracemalloc.stop()\n",
        new="            tracemalloc.stop()\n",
    ),
    Wrong(
        name="tracing goes on after a failure",
        part="test-memory",
        old="            del result\n        finally:\n",
        new="            del result\n        except ValueError:\n            pass\n        else:\n",
    ),
    Wrong(
        name="memory without warm-up",
        part="test-memory",
        old="        for _ in range(self.warmup):\n            function(*args, **options)\n        gc.collect()\n",
        new="        gc.collect()\n",
    ),
    # layers
    Wrong(
        name="own time is the whole time",
        part="test-layer-clock",
        old="own = total - self.inside.pop()",
        new="own = total - 0 * self.inside.pop()",
    ),
    Wrong(
        name="a layer does not tell the one around it",
        part="test-layer-clock",
        old="                self.inside[-1] += total\n",
        new="                self.inside[-1] += 0\n",
    ),
    Wrong(
        name="own times are told instead of totals",
        part="test-layer-clock",
        old="                self.inside[-1] += total\n",
        new="                self.inside[-1] += own\n",
    ),
    Wrong(
        name="inner seconds are taken off every layer around",
        part="test-layer-clock",
        old="            if self.inside:\n                self.inside[-1] += total\n",
        new="            self.inside[:] = [seconds + total for seconds in self.inside]\n",
    ),
    Wrong(
        name="the last call replaces the ones before",
        part="test-layer-clock",
        old="old = self.times.get(name, LayerTime())",
        new="old = LayerTime()",
    ),
    Wrong(
        name="what the layer returns is lost",
        part="test-layer-clock",
        old="            return inner(*inputs, **options)\n",
        new="            inner(*inputs, **options)\n",
    ),
    Wrong(
        name="a failing layer stays on the stack",
        part="test-layer-clock",
        old="            return inner(*inputs, **options)\n        finally:\n",
        new="            answer = inner(*inputs, **options)\n        except ZeroDivisionError:\n            raise\n        else:\n",
    ),
    Wrong(
        name="wrappers stay when the model fails",
        part="test-run-observed",
        old="    finally:\n        for _, module, wrapper in reversed(wrapped):\n",
        new="    except ZeroDivisionError:\n        raise\n    else:\n        for _, module, wrapper in reversed(wrapped):\n",
    ),
    Wrong(
        name="wrappers are never taken off",
        part="test-run-observed",
        old="            module.unwrap(",
        new="            (module, wrapper) or module.unwrap(",
    ),
    Wrong(
        name="wrapping stands outside the try",
        part="test-run-observed",
        old="""\
    try:
        for name, module in named_modules(model):
            wrapper = partial(layer_clock.call, name)
            module.wrap("forward", wrapper)
            wrapped.append((name, module, wrapper))
""",
        new="""\
    for name, module in named_modules(model):
        wrapper = partial(layer_clock.call, name)
        module.wrap("forward", wrapper)
        wrapped.append((name, module, wrapper))
    try:
""",
    ),
    Wrong(
        name="a closure over the loop variable: all times under the last name",
        part="test-run-observed",
        old="wrapper = partial(layer_clock.call, name)",
        new="wrapper = lambda inner, *x, **o: layer_clock.call(name, inner, *x, **o)",
    ),
    Wrong(
        name="the model itself is not timed",
        part="test-run-observed",
        old="in named_modules(model):\n            wrapper",
        new="in list(named_modules(model))[1:]:\n            wrapper",
    ),
    Wrong(
        name="only the first level of parts",
        part="test-run-observed",
        old="in named_modules(model):\n            wrapper",
        new='in [("model", model), *model.children()]:\n            wrapper',
    ),
    Wrong(
        name="options do not reach the model",
        part="test-run-observed",
        old="        model(*inputs, **(options or {}))\n",
        new="        model(*inputs)\n",
    ),
    Wrong(
        name="layers that did not run are looked up",
        part="test-run-observed",
        old="for name, _, _ in wrapped if name in layer_clock.times}",
        new="for name, _, _ in wrapped}",
    ),
    # costs
    Wrong(
        name="a multiplication and an addition counted as one",
        part="test-linear-cost",
        old="flops = 2 * rows * in_features * out_features",
        new="flops = rows * in_features * out_features",
    ),
    Wrong(
        name="the bias is always there",
        part="test-linear-cost",
        old="    if bias:\n",
        new="    if True:\n",
    ),
    Wrong(
        name="one bias in all, not one per row",
        part="test-linear-cost",
        old="        flops += rows * out_features\n",
        new="        flops += out_features\n",
    ),
    Wrong(
        name="the weights are fetched for every row",
        part="test-linear-cost",
        old="rows * in_features + out_features * in_features + rows",
        new="rows * in_features + rows * out_features * in_features + rows",
    ),
    Wrong(
        name="the output is not written",
        part="test-linear-cost",
        old=" + rows * out_features\n    if bias",
        new="\n    if bias",
    ),
    Wrong(
        name="numbers of one byte",
        part="test-linear-cost",
        old="        numbers += out_features\n    return Cost(flops, 4 * numbers)\n",
        new="        numbers += out_features\n    return Cost(flops, numbers)\n",
    ),
    Wrong(
        name="only the scores are counted",
        part="test-attention-cost",
        old="flops = 2 * (2 * scores * D)",
        new="flops = 2 * scores * D",
    ),
    Wrong(
        name="heads are forgotten",
        part="test-attention-cost",
        old="per_head = B * H",
        new="per_head = B",
    ),
    Wrong(
        name="queries and keys are equally many",
        part="test-attention-cost",
        old="queries, keys = per_head * T * D, per_head * S * D",
        new="queries, keys = per_head * T * D, per_head * T * D",
    ),
    Wrong(
        name="the causal half is not counted",
        part="test-attention-cost",
        old="scores = per_head * T * S",
        new="scores = per_head * T * (S + 1) // 2",
    ),
    Wrong(
        name="the softmax moves nothing",
        part="test-attention-cost",
        old=" + (scores + scores) + ",
        new=" + ",
    ),
    Wrong(
        name="three projections",
        part="test-gpt-cost",
        old="projections = 4 * linear",
        new="projections = 3 * linear",
    ),
    Wrong(
        name="the MLP is as wide as the model",
        part="test-gpt-cost",
        old="linear_cost(rows, C, 4 * C) + linear_cost(rows, 4 * C, C)",
        new="2 * linear_cost(rows, C, C)",
    ),
    Wrong(
        name="new tokens see only the seen ones",
        part="test-gpt-cost",
        old="all_tokens = seen_tokens + new_tokens",
        new="all_tokens = max(1, seen_tokens)",
    ),
    Wrong(
        name="new tokens see only themselves",
        part="test-gpt-cost",
        old="all_tokens = seen_tokens + new_tokens",
        new="all_tokens = new_tokens",
    ),
    Wrong(
        name="logits for every token",
        part="test-gpt-cost",
        old="logits = linear_cost(batch, C,",
        new="logits = linear_cost(rows, C,",
    ),
    Wrong(
        name="logits in every layer",
        part="test-gpt-cost",
        old="sizes.num_layers * (projections + mlp + attention) + logits",
        new="sizes.num_layers * (projections + mlp + attention + logits)",
    ),
    Wrong(
        name="heads as wide as the model",
        part="test-gpt-cost",
        old="sizes.num_heads, C // sizes.num_heads)",
        new="sizes.num_heads, C)",
    ),
    Wrong(
        name="the tied output has a bias",
        part="test-gpt-cost",
        old="sizes.vocab_size, bias=False)",
        new="sizes.vocab_size)",
    ),
    # the machine
    Wrong(
        name="n squared operations in a matrix product",
        part="test-measure",
        old="2 * size**3",
        new="2 * size**2",
    ),
    Wrong(
        name="a peak from the median",
        part="test-measure",
        old="profiler.time(np.dot, matrix, vector).low",
        new="profiler.time(np.dot, matrix, vector).median",
    ),
    Wrong(
        name="memory that nobody has written to",
        part="test-measure",
        old="np.ones((side, side), np.float32)",
        new="np.zeros((side, side), np.float32)",
    ),
    Wrong(
        name="measured in float64",
        part="test-measure",
        old="a, b = np.ones((size, size), np.float32), np.ones((size, size), np.float32)",
        new="a, b = np.ones((size, size)), np.ones((size, size))",
    ),
    Wrong(
        name="numbers per second instead of bytes",
        part="test-measure",
        old="matrix.nbytes /",
        new="matrix.size /",
    ),
    Wrong(
        name="the ridge upside down",
        part="test-machine",
        old="return self.flops_per_second / self.bytes_per_second\n",
        new="return self.bytes_per_second / self.flops_per_second\n",
    ),
    Wrong(
        name="the higher of the two limits",
        part="test-machine",
        old="min(self.flops_per_second, intensity",
        new="max(self.flops_per_second, intensity",
    ),
    Wrong(
        name="computing and fetching one after the other",
        part="test-machine",
        old="max(cost.flops / self.flops_per_second, cost.bytes / self.bytes_per_second)",
        new="cost.flops / self.flops_per_second + cost.bytes / self.bytes_per_second",
    ),
    Wrong(
        name="bound by what there is more of",
        part="test-machine",
        old="cost.bytes / self.bytes_per_second > cost.flops / self.flops_per_second",
        new="cost.bytes > cost.flops",
    ),
]
