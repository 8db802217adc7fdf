"""Right answers to module 20: other loops, other axes, heaps, and copies instead of views."""

from right_answers import Right

RIGHT = [
    Right(
        name="a heap of free rows, axes by name, pieces glued instead of written in place",
        bodies={
            "static_steps": """
                rest, steps = list(lengths), 0
                while rest:
                    group, rest = rest[:slots], rest[slots:]
                    steps += max(group)
                return steps
            """,
            "continuous_steps": """
                import heapq

                heap = [0] * slots
                for length in lengths:
                    heapq.heapreplace(heap, heap[0] + length)
                return max(heap)
            """,
            "Request.unread": """
                count = len(self.tokens) - self.cache.seq_pos
                return self.tokens[-count:] if count else []
            """,
            "Request.done": """
                new = self.new_tokens
                stopped = self.text_stopped or not self.stop_tokens.isdisjoint(new[-1:])
                return any([self.cancelled, self.error is not None, len(new) >= self.max_new_tokens, stopped])
            """,
            "Request.take": """
                self.tokens.extend(self.choose(logits.reshape(1, -1)).tolist())
            """,
            "share_out": """
                taken = 0

                def piece(n):
                    nonlocal taken
                    own = int(np.clip(n, 1, chunk))
                    if n > 1:
                        own *= taken + own <= chunk
                        taken += own
                    return own

                return [piece(n) for n in unread]
            """,
            "flatten": """
                sizes = np.array([len(piece) for piece in pieces])
                ends = sizes.cumsum()
                first = np.repeat(ends - sizes, sizes)
                positions = np.arange(ends[-1]) - first + np.repeat(starts, sizes)
                tokens = np.fromiter((token for piece in pieces for token in piece), dtype=np.int64)
                rows = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes)]
                return tokens.reshape(-1, 1), positions.reshape(-1, 1), rows
            """,
            "FlatLayer.forward": """
                query, key, value = self.attention.project(x, *where, **named)
                answers = []
                for request, rows in self.front.reading:
                    q = np.moveaxis(query.data[rows], -2, 0)[0]
                    q = np.moveaxis(q, 0, -2)[None]
                    k, v = (np.moveaxis(part.data[rows][:, :, 0], 0, 1)[None] for part in (key, value))
                    answer = np.zeros(q.shape, np.float32)
                    if request.error is None:
                        try:
                            answer = attention_with_cache(q, k, v, request.cache, self.layer_idx).data
                        except FAILURES as refusal:
                            request.error = refusal
                    answers.append(np.moveaxis(answer[0], -2, 0)[..., None, :])
                return self.attention.merge(Tensor(np.concatenate(answers)))
            """,
            "FlatModel.read": """
                answers = [None] * len(pieces)
                with no_grad(), self.in_front():
                    hidden = self.model.hidden_states(tokens).data
                    wanted = []
                    for place, (request, n) in enumerate(pieces):
                        if not request.error and len(request.unread()) == n:
                            wanted.append(place)
                    if wanted:
                        last = np.concatenate([hidden[rows[place]][-1:] for place in wanted])
                        logits = self.model.logits(Tensor(last)).data
                        for place, row in zip(wanted, logits):
                            answers[place] = row[0]
                return answers
            """,
            "ContinuousBatch.admit": """
                for request in tuple(self.waiting):
                    if len(self.running) >= self.max_requests:
                        break
                    try:
                        self.open_cache(request)
                        self.running.append(request)
                    except FAILURES as refusal:
                        self.release(request)
                        if self.waiting_helps(refusal):
                            return
                        request.error = refusal
                    self.waiting.popleft()
            """,
            "ContinuousBatch.retire": """
                for request in self.running[:]:
                    if request.done:
                        self.running.remove(request)
                        self.release(request)
            """,
            "ContinuousBatch.step": """
                self.retire()
                self.admit()
                got = []
                if self.running:
                    pieces = self.plan()
                    answers = self.front.read(pieces)
                    for i in range(len(pieces)):
                        (request, n), row = pieces[i], answers[i]
                        if request.error is None:
                            try:
                                if row is not None:
                                    request.take(row)
                                    got += [request]
                                request.cache.advance(n)
                            except FAILURES as refusal:
                                request.error = refusal
                    self.retire()
                return got
            """,
        },
    ),
    Right(
        name="the simulation step by step, contiguous copies for attention, dictionaries for logits",
        bodies={
            "continuous_steps": """
                waiting, busy, steps = list(lengths), [], 0
                while waiting or busy:
                    while waiting and len(busy) < slots:
                        busy.append(waiting.pop(0))
                    busy = [left - 1 for left in busy if left > 1]
                    steps += 1
                return steps
            """,
            "share_out": """
                counts, budget = [int(n == 1) for n in unread], chunk
                for i, n in enumerate(unread):
                    size = chunk if n > chunk else n
                    if n != 1 and budget - size >= 0:
                        counts[i] = size
                        budget = budget - size
                return counts
            """,
            "flatten": """
                tokens, positions, rows = [], [], []
                for piece, start in zip(pieces, starts):
                    rows.append(slice(len(tokens), len(tokens) + len(piece)))
                    tokens.extend(piece)
                    positions.extend(range(start, start + len(piece)))
                return np.array(tokens, np.int32)[:, None], np.array(positions, np.int32)[:, None], rows
            """,
            "FlatLayer.forward": """
                projected = self.attention.project(x, *where, **named)
                query = projected[0]
                heads = Tensor(np.zeros(query.shape, query.dtype))
                healthy = [pair for pair in self.front.reading if pair[0].error is None]
                for request, rows in healthy:
                    axes = (2, 1, 0, 3) if query.ndim == 4 else (3, 1, 2, 0, 4)
                    q = np.ascontiguousarray(query.data[rows].transpose(axes))
                    k, v = (np.ascontiguousarray(p.data[rows].transpose(2, 1, 0, 3)) for p in projected[1:])
                    try:
                        out = attention_with_cache(q, k, v, request.cache, self.layer_idx)
                        heads.data[rows] = out.data.transpose(axes)
                    except FAILURES as error:
                        request.error = error
                return self.attention.merge(heads)
            """,
            "FlatModel.read": """
                with self.in_front():
                    with no_grad():
                        hidden = self.model.hidden_states(tokens)
                        ends = {}
                        for (request, n), where in zip(pieces, rows):
                            if request.error is None and len(request.unread()[n:]) == 0:
                                ends[id(request)] = where.stop - 1
                        found = {}
                        if ends:
                            picked = Tensor(hidden.data[list(ends.values())])
                            found = dict(zip(ends, np.asarray(self.model.logits(picked))[:, 0, :]))
                return [found.get(id(request)) for request, _ in pieces]
            """,
            "ContinuousBatch.admit": """
                while len(self.waiting) > 0 and self.max_requests > len(self.running):
                    first = self.waiting[0]
                    try:
                        self.open_cache(first)
                    except FAILURES as error:
                        self.release(first)
                        if not self.waiting_helps(error):
                            first.error = error
                            self.waiting.popleft()
                            continue
                        break
                    self.running.append(self.waiting.popleft())
            """,
            "ContinuousBatch.retire": """
                stay, leave = [], []
                for request in self.running:
                    (leave if request.done else stay).append(request)
                self.running = stay
                for request in leave:
                    self.release(request)
            """,
        },
    ),
    Right(
        name="sorted rows, sampling by hand, a queue of what is left",
        bodies={
            "static_steps": """
                steps = 0
                for place, length in enumerate(lengths):
                    if place % slots == 0:
                        longest = 0
                    steps += max(length - longest, 0)
                    longest = max(longest, length)
                return steps
            """,
            "continuous_steps": """
                rows = [0 for _ in range(slots)]
                for length in lengths:
                    rows.sort()
                    rows[0] += length
                return sorted(rows)[-1]
            """,
            "Request.unread": """
                return [token for place, token in enumerate(self.tokens) if place >= self.cache.seq_pos]
            """,
            "Request.done": """
                if self.error is not None:
                    return True
                if self.cancelled:
                    return True
                new = self.tokens[self.num_prompt:]
                if len(new) == self.max_new_tokens:
                    return True
                if any(new[-1:] == [stop] for stop in self.stop_tokens):
                    return True
                return self.text_stopped
            """,
            "Request.take": """
                rows = np.expand_dims(logits, 0)
                self.tokens += [int(self.choose(rows)[0])]
            """,
            "ContinuousBatch.step": """
                self.retire()
                self.admit()
                if len(self.running) == 0:
                    return []
                pieces = self.plan()
                logits = self.front.read(pieces)

                def commit(request, n, row):
                    if row is not None:
                        request.take(row)
                    request.cache.advance(n)

                got = []
                for (request, n), row in zip(pieces, logits):
                    if request.error is None:
                        before = len(request.tokens)
                        try:
                            commit(request, n, row)
                        except FAILURES as error:
                            request.error = error
                        if len(request.tokens) > before:
                            got.append(request)
                self.retire()
                return got
            """,
        },
    ),
]
