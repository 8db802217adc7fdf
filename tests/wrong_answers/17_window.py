"""Mistakes that students make in module 17."""

from wrong_answers import Wrong

WRONG = [
    Wrong(
        name="the window counts the tokens before the query, and not the query",
        part="test-window-mask",
        old="keys > queries - window",
        new="keys >= queries - window",
    ),
    Wrong(
        name="a sink is seen before it is there",
        part="test-window-mask",
        old="(keys <= queries) & ((keys > queries - window) | (keys < num_sinks))",
        new="(keys <= queries) & (keys > queries - window) | (keys < num_sinks)",
    ),
    Wrong(
        name="the range begins with what the last query sees",
        part="test-seen-positions",
        old="oldest = max(0, first - window + 1)",
        new="oldest = max(0, last - window)",
    ),
    Wrong(
        name="a sink in the window is listed twice",
        part="test-seen-positions",
        old="np.arange(min(num_sinks, oldest))",
        new="np.arange(num_sinks)",
    ),
    Wrong(
        name="the ring runs over the sinks' slots",
        part="test-slots-of",
        old="np.where(positions < num_sinks, positions, num_sinks + (positions - num_sinks) % window)",
        new="positions % (window + num_sinks)",
    ),
    Wrong(
        name="what a token takes the place of is not kept",
        part="test-write-one",
        old="            self.replaced[layer_idx] = slot, *(store[:, :, slot].copy() for store in pair)\n",
        new="            pass\n",
    ),
    Wrong(
        name="written a second time, the first attempt is taken for what lay there",
        part="test-write-one",
        old="        if layer_idx not in self.replaced:\n",
        new="        if True:\n",
    ),
    Wrong(
        name="of a long prompt only a window is kept, the spare slots stay as they were",
        part="test-join",
        old="self.pending_stop, self.ring, self.num_sinks)",
        new="self.pending_stop, self.window, self.num_sinks)",
    ),
    Wrong(
        name="a rewind leaves what it wrote over as it is",
        part="test-window-truncate",
        old="        self.take_back()\n",
        new="        self.pending = {}\n",
    ),
    Wrong(
        name="slots that nobody has written are shown",
        part="test-write-one",
        old="tuple(store[:, :, :stop] for store in pair)",
        new="tuple(store[:, :, :] for store in pair)",
    ),
    Wrong(
        name="all slots are copied for every token",
        part="test-write-one",
        old="tuple(store[:, :, :stop] for store in pair)",
        new="tuple(store[:, :, :stop].copy() for store in pair)",
    ),
    Wrong(
        name="a chunk is written into the slots before it is committed",
        part="test-join",
        old="        old = (tensor.data for tensor in self.get(layer_idx))\n",
        new="        old = [tensor.data for tensor in self.get(layer_idx)]\n"
        "        slots = slots_of(kept, self.ring, self.num_sinks)\n"
        "        for store, array in zip(self.caches[layer_idx], self.pending[layer_idx][1:], strict=True):\n"
        "            store[:, :, slots] = array\n",
    ),
    Wrong(
        name="the whole prompt stays pending",
        part="test-join",
        old="kept = seen_positions(self.pending_stop - 1, self.pending_stop, self.ring, self.num_sinks)",
        new="kept = np.arange(self.pending_stop)",
    ),
    Wrong(
        name="sinks that come in a long prompt are not kept",
        part="test-join",
        old="kept = seen_positions(self.pending_stop - 1, self.pending_stop, self.ring, self.num_sinks)",
        new="kept = np.arange(max(0, self.pending_stop - self.ring), self.pending_stop)",
    ),
    Wrong(
        name="only what the next token sees is kept: one too few for a rewind by one",
        part="test-join",
        old="kept = seen_positions(self.pending_stop - 1, self.pending_stop, self.ring, self.num_sinks)",
        new="kept = seen_positions(self.pending_stop, self.pending_stop + 1, self.ring, self.num_sinks)[:-1]",
    ),
    Wrong(
        name="pending is emptied first: an interruption loses it",
        part="test-settle",
        old="for layer_idx, (positions, *new) in self.pending.items():",
        new="waiting, self.pending = self.pending, {}\n"
        "        for layer_idx, (positions, *new) in waiting.items():",
    ),
    Wrong(
        name="a settled chunk has written nothing over, it is believed",
        part="test-settle",
        old="        self.gone = max(self.gone, self.seq_pos - self.ring)\n",
        new="",
    ),
    Wrong(
        name="all slots in use are shown, the one that the next token takes among them",
        part="test-window-get",
        old="slots = slots_of(self.positions, self.ring, self.num_sinks)",
        new="slots = np.arange(min(self.seq_pos, self.capacity))",
    ),
    Wrong(
        name="rewound as in the plain cache, to keys that are not there",
        part="test-window-truncate",
        old="        if oldest < min(self.gone, seq_pos):\n",
        new="        if False:\n",
    ),
    Wrong(
        name="a rewind to the sinks is refused",
        part="test-window-truncate",
        old="        if oldest < min(self.gone, seq_pos):\n",
        new="        if oldest < self.gone:\n",
    ),
    Wrong(
        name="a rewind by one is refused: the window counted one too wide",
        part="test-window-truncate",
        old="oldest = max(self.num_sinks, seq_pos - self.window + 1)",
        new="oldest = max(self.num_sinks, seq_pos - self.window)",
    ),
    Wrong(
        name="one block for all queries: T * T scores",
        part="test-attend-in-window",
        old="    for start in range(first, stop, block):\n",
        new="    block = stop - first\n    for start in range(first, stop, block):\n",
    ),
    Wrong(
        name="a block sees all that one of its queries sees",
        part="test-attend-in-window",
        old="mask = window_mask(queries, keys, window, num_sinks)",
        new="mask = np.where(keys > queries[:, None], np.float32(-np.inf), np.float32(0))",
    ),
    Wrong(
        name="the query turned forward, away from the sinks",
        part="test-sink-correction",
        old="apply_rotary(query, cos, -sin)",
        new="apply_rotary(query, cos, sin)",
    ),
    Wrong(
        name="the turned score instead of the difference: the old one is counted as well",
        part="test-sink-correction",
        old="apply_rotary(query, cos, -sin) - query",
        new="apply_rotary(query, cos, -sin)",
    ),
    Wrong(
        name="new positions in a new object, which a cache does not know",
        part="test-more-positions",
        old="rotary.tables = rotary_tables(np.arange(max_seq_len), model.head_dim, model.rope_base, model.rope_factors)",
        new="model.position_embedding = type(rotary)(model.head_dim, max_seq_len, model.rope_base, model.rope_factors)",
    ),
    Wrong(
        name="the angles of another base",
        part="test-more-positions",
        old="rotary_tables(np.arange(max_seq_len), model.head_dim, model.rope_base, model.rope_factors)",
        new="rotary_tables(np.arange(max_seq_len), model.head_dim, factors=model.rope_factors)",
    ),
    Wrong(
        name="the model turns as fast as one without factors",
        part="test-more-positions",
        old="model.rope_base, model.rope_factors)",
        new="model.rope_base)",
    ),
]
