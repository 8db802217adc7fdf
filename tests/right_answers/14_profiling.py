"""Right answers to module 14."""

from right_answers import Right

RIGHT = [
    Right(
        name="comprehensions, ExitStack, sorted times",
        bodies={
            "Profiler.time": """
                def seconds():
                    start = self.clock()
                    function(*args, **options)
                    return self.clock() - start

                for _ in range(self.warmup):
                    function(*args, **options)
                times = sorted(seconds() for _ in range(self.repeats))
                return Timing(*(float(t) for t in (np.median(times), times[0], times[-1])))
            """,
            "Profiler.memory": """
                from contextlib import ExitStack

                for _ in range(self.warmup):
                    function(*args, **options)
                gc.collect()
                with ExitStack() as stack:
                    if not tracemalloc.is_tracing():
                        tracemalloc.start()
                        stack.callback(tracemalloc.stop)
                    start = tracemalloc.get_traced_memory()[0]
                    tracemalloc.reset_peak()
                    held = [function(*args, **options)]
                    now, peak = tracemalloc.get_traced_memory()
                    held.clear()
                return Memory(peak=peak - start, kept=now - start)
            """,
            "LayerClock.call": """
                self.inside.append(0)
                begin = self.clock()
                try:
                    result = inner(*inputs, **options)
                finally:
                    took = self.clock() - begin
                    children = self.inside.pop()
                    if len(self.inside) > 0:
                        self.inside[-1] += took
                    t = self.times.setdefault(name, LayerTime())
                    self.times[name] = LayerTime(t.calls + 1, t.total + took, t.own + took - children)
                return result
            """,
            "run_observed": """
                from contextlib import ExitStack

                found = dict(named_modules(model))
                with ExitStack() as undo:
                    for name in found:
                        observer = partial(layer_clock.call, name)
                        found[name].wrap("forward", observer)
                        undo.callback(found[name].unwrap, "forward", observer)
                    model(*inputs, **({} if options is None else options))
                ran = layer_clock.times
                return {name: ran[name] for name in found if name in ran}
            """,
            "linear_cost": """
                outputs = rows * out_features
                weights = out_features * (in_features + bias)
                return Cost(flops=outputs * (2 * in_features + bias), bytes=4 * (rows * in_features + weights + outputs))
            """,
            "attention_cost": """
                scores, products = T * S, 2 * T * S * D
                one_head = Cost(products, 4 * (T * D + S * D + scores))
                softmax = Cost(0, 4 * 2 * scores)
                return B * H * (one_head + softmax + Cost(products, 4 * (scores + S * D + T * D)))
            """,
            "gpt_cost": """
                total = Cost()
                heads = sizes.num_heads
                for _ in range(sizes.num_layers):
                    for wide_in, wide_out in [(C, C)] * 4 + [(C, 4 * C), (4 * C, C)]:
                        total = total + linear_cost(rows, wide_in, wide_out)
                    total = total + attention_cost(batch, new_tokens, seen_tokens + new_tokens, heads, C // heads)
                return total + linear_cost(batch, C, sizes.vocab_size, False)
            """,
            "measure_flops": """
                rng = np.random.default_rng(0)
                a, b = (rng.uniform(1, 2, (size, size)).astype(np.float32) for _ in range(2))
                return size * size * size * 2 / profiler.time(np.matmul, a, b).low
            """,
            "measure_bandwidth": """
                n = int(math.sqrt(num_bytes / 4))
                a = np.full((n, n), 2, dtype=np.float32)
                return a.size * a.itemsize / profiler.time(np.matmul, a, np.full(n, 3, dtype=np.float32)).low
            """,
            "Machine.bound_by": """
                return "flops" if cost.flops / self.flops_per_second >= cost.bytes / self.bytes_per_second else "bytes"
            """,
        },
    ),
    Right(
        name="a beginner, step by step",
        bodies={
            "Profiler.time": """
                import os  # noqa: F401

                i = 0
                while i < self.warmup:
                    function(*args, **options)
                    i = i + 1
                zeiten = []
                while len(zeiten) < self.repeats:
                    anfang = self.clock()
                    function(*args, **options)
                    ende = self.clock()
                    zeiten.append(ende - anfang)
                zeiten.sort()
                mitte = len(zeiten) // 2
                if len(zeiten) % 2 == 1:
                    median = zeiten[mitte]
                else:
                    median = (zeiten[mitte - 1] + zeiten[mitte]) / 2
                print("Zeiten:", zeiten)
                return Timing(float(median), float(zeiten[0]), float(zeiten[-1]))
            """,
            "linear_cost": """
                flops = 0
                flops += rows * in_features * out_features  # mal
                flops += rows * in_features * out_features  # plus
                zahlen = rows * in_features
                zahlen += in_features * out_features
                zahlen += rows * out_features
                if bias == True:
                    flops += rows * out_features
                    zahlen += out_features
                return Cost(flops=flops, bytes=zahlen * 4)
            """,
            "attention_cost": """
                q = B * H * T * D
                k = B * H * S * D
                v = k
                out = q
                scores = B * H * T * S
                flops = 2 * scores * D + 2 * scores * D
                zahlen = q + k + scores  # Produkt
                zahlen = zahlen + scores + scores  # Softmax: lesen und schreiben
                zahlen = zahlen + scores + v + out
                return Cost(flops, zahlen * 4)
            """,
            "gpt_cost": """
                eine_schicht = linear_cost(rows, C, C) * 4
                eine_schicht = eine_schicht + linear_cost(rows, C, 4 * C)
                eine_schicht = eine_schicht + linear_cost(rows, 4 * C, C)
                H = sizes.num_heads
                S = seen_tokens + new_tokens
                eine_schicht = eine_schicht + attention_cost(B=batch, T=new_tokens, S=S, H=H, D=C // H)
                alles = eine_schicht * sizes.num_layers
                alles = alles + linear_cost(rows=batch, in_features=C, out_features=sizes.vocab_size, bias=False)
                return alles
            """,
            "Machine.attainable": """
                grenze = intensity * self.bytes_per_second
                if grenze > self.flops_per_second:
                    grenze = self.flops_per_second
                return grenze
            """,
            "Machine.seconds": """
                rechnen = cost.flops / self.flops_per_second
                laden = cost.bytes / self.bytes_per_second
                if rechnen > laden:
                    return rechnen
                else:
                    return laden
            """,
            "Machine.bound_by": """
                if cost.bytes / self.bytes_per_second > cost.flops / self.flops_per_second:
                    return "bytes"
                return "flops"
            """,
        },
    ),
]
