"""Wrong answers to module 19: books that do not balance, blocks that are taken for others, tables misread."""

from wrong_answers import Wrong

WRONG = [
    # counting
    Wrong(
        name="one block too many when the last is just full",
        part="test-blocks",
        old="    return -(-num_tokens // block_size)\n",
        new="    return num_tokens // block_size + 1\n",
    ),
    Wrong(
        name="the last block is forgotten unless it is full",
        part="test-blocks",
        old="    return -(-num_tokens // block_size)\n",
        new="    return num_tokens // block_size\n",
    ),
    # slots
    Wrong(
        name="slots of the blocks themselves, the table is not asked",
        part="test-slots-of",
        old="    return np.asarray(table, int)[positions // block_size] * block_size + positions % block_size\n",
        new="    return table[0] * block_size + positions\n",
    ),
    Wrong(
        name="a block's number is taken for its first slot",
        part="test-slots-of",
        old="[positions // block_size] * block_size + positions % block_size\n",
        new="[positions // block_size] + positions % block_size\n",
    ),
    # digests
    Wrong(
        name="the digest leaves out what came before",
        part="test-chain-digest",
        old="hashlib.blake2b(parent + np.asarray(tokens, np.int64).tobytes(), digest_size=16)",
        new="hashlib.blake2b(np.asarray(tokens, np.int64).tobytes(), digest_size=16)",
    ),
    Wrong(
        name="the digest is made of the ids written one behind the other",
        part="test-chain-digest",
        old="np.asarray(tokens, np.int64).tobytes()",
        new='"".join(str(int(token)) for token in tokens).encode()',
    ),
    Wrong(
        name="the digest keeps one byte of each id",
        part="test-chain-digest",
        old="np.asarray(tokens, np.int64).tobytes()",
        new="np.asarray(tokens, np.int64).astype(np.uint8).tobytes()",
    ),
    # the index
    Wrong(
        name="a digest is believed without a look at the tokens",
        part="test-lookup",
        old="(known.parent is not parent or known.tokens != tokens)",
        new="known.parent is not parent",
    ),
    Wrong(
        name="a digest is believed whatever the parent is",
        part="test-lookup",
        old="(known.parent is not parent or known.tokens != tokens)",
        new="known.tokens != tokens",
    ),
    Wrong(
        name="the search goes on behind a piece that is not known",
        part="test-find",
        old="            if parent is None:\n                break\n            blocks.append(parent.block)\n",
        new="            if parent is not None:\n                blocks.append(parent.block)\n",
    ),
    Wrong(
        name="every piece is entered as a first one",
        part="test-add-forget",
        old="                known = KnownBlock(block, digest, chain[-1], piece)\n",
        new="                known = KnownBlock(block, digest, None, piece)\n",
    ),
    Wrong(
        name="what stood under the digest stays known by its block",
        part="test-add-forget",
        old="                others = [self.by_digest.get(digest), self.by_block.get(block)]\n",
        new="                others = [self.by_block.get(block)]\n",
    ),
    Wrong(
        name="a text forgets its own beginning for its end",
        part="test-add-forget",
        old="                if any(other in chain for other in others if other is not None):\n",
        new="                if False:\n",
    ),
    Wrong(
        name="what follows a forgotten block stays known, where nobody finds it",
        part="test-add-forget",
        old="                waiting += known.children\n",
        new="",
    ),
    Wrong(
        name="forgotten by its number only, still found by its digest",
        part="test-add-forget",
        old="                del self.by_block[known.block], self.by_digest[known.digest]\n",
        new="                del self.by_block[known.block]\n",
    ),
    # the books
    Wrong(
        name="cached blocks are forgotten before it is clear that there are enough",
        part="test-take",
        old="""\
        self.check_available(count)
        while len(self.free) < count:
""",
        new="""\
        while len(self.free) < count:
            if not self.cached:
                self.check_available(count)
""",
    ),
    Wrong(
        name="the youngest cached block goes first",
        part="test-take",
        old="            oldest = next(iter(self.cached))\n",
        new="            oldest = list(self.cached)[-1]\n",
    ),
    Wrong(
        name="an evicted block is still found by the index",
        part="test-take",
        old="            for block in self.index.forget(oldest):\n",
        new="            for block in [oldest]:\n",
    ),
    Wrong(
        name="what can be found no more stays cached",
        part="test-take",
        old="            for block in self.index.forget(oldest):\n",
        new="            for block in self.index.forget(oldest)[:1]:\n",
    ),
    Wrong(
        name="a cached block that is shared again can still be evicted",
        part="test-hold",
        old="            self.cached.pop(block, None)\n",
        new="",
    ),
    Wrong(
        name="a block is free as soon as one of its holders lets go",
        part="test-give-back",
        old="            if self.references[block] == 0:\n",
        new="            if self.references[block] >= 0:\n",
    ),
    Wrong(
        name="a text's beginning is evicted before its end",
        part="test-give-back",
        old="        for block in reversed(blocks):\n",
        new="        for block in blocks:\n",
    ),
    Wrong(
        name="a block may be given back that nobody holds",
        part="test-give-back",
        old="            if self.references[block] < times:\n",
        new="            if block < 0:\n",
    ),
    # reading and writing
    Wrong(
        name="a text is written from the beginning of its table",
        part="test-pool-write",
        old="slots_of(table, start, start + key.shape[1], self.block_size)",
        new="slots_of(table, 0, key.shape[1], self.block_size)",
    ),
    Wrong(
        name="a run is taken for granted when the ends fit",
        part="test-pool-read",
        old="        if table == list(range(first, first + len(table))):\n",
        new="        if not table or table[-1] - first == len(table) - 1:\n",
    ),
    Wrong(
        name="everything is gathered, runs too",
        part="test-pool-read",
        old="        if table == list(range(first, first + len(table))):\n",
        new="        if not table:\n",
    ),
    # the cache
    Wrong(
        name="a shared block is written without a copy",
        part="test-make-room",
        old="if offset and not pool.is_private(table[at])]",
        new="if False]",
    ),
    Wrong(
        name="a block that the index knows is written by its only holder",
        part="test-make-room",
        old="if offset and not pool.is_private(table[at])]",
        new="if offset and pool.references[table[at]] > 1]",
    ),
    Wrong(
        name="every update takes blocks, repeated or not",
        part="test-make-room",
        old="max(0, blocks_for(stop, pool.block_size) - len(table))",
        new="blocks_for(stop, pool.block_size) - self.seq_pos // pool.block_size - (offset > 0)",
    ),
    Wrong(
        name="rows are served one after the other until the pool is empty",
        part="test-make-room",
        old="        pool.check_available(len(foreign) + sum(missing))\n",
        new="",
    ),
    Wrong(
        name="the original of a copied block is not given back",
        part="test-make-room",
        old="            pool.give_back([shared])\n",
        new="",
    ),
    Wrong(
        name="a half full block is given back with the rest",
        part="test-trim",
        old="        kept = blocks_for(self.seq_pos, self.pool.block_size)\n        for table in self.tables:\n",
        new="        kept = self.seq_pos // self.pool.block_size\n        for table in self.tables:\n",
    ),
    Wrong(
        name="the table is shortened and the pool is not told",
        part="test-trim",
        old="            self.pool.give_back(rest)\n",
        new="",
    ),
    Wrong(
        name="a fork does not count as a holder",
        part="test-fork",
        old="            self.pool.hold(mine[:kept])\n",
        new="",
    ),
]
