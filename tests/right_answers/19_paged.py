"""Right answers to module 19: loops, other hashes, other ways to keep the same books."""

from right_answers import Right

RIGHT = [
    Right(
        name="loops over single tokens and blocks",
        bodies={
            "blocks_for": """
                full, left = divmod(num_tokens, block_size)
                return full + 1 if left else full
            """,
            "unused_slots": """
                empty = 0
                for length in lengths:
                    if length % block_size:
                        empty += block_size - length % block_size
                return empty
            """,
            "slots_of": """
                slots = []
                for position in range(start, stop):
                    block, place = divmod(position, block_size)
                    slots.append(table[block] * block_size + place)
                return np.array(slots, dtype=np.intp)
            """,
            "BlockPool.write": """
                for t in range(key.shape[1]):
                    (slot,) = slots_of(table, start + t, start + t + 1, self.block_size)
                    self.keys[layer_idx][:, slot] = key[:, t]
                    self.values[layer_idx][:, slot] = value[:, t]
            """,
            "BlockPool.read": """
                size, keys, values = self.block_size, self.keys[layer_idx], self.values[layer_idx]
                if not table:
                    return keys[:, :0], values[:, :0]
                if all(b == a + 1 for a, b in zip(table, table[1:])):
                    part = slice(table[0] * size, table[0] * size + num_tokens)
                    return keys[:, part], values[:, part]
                pieces = [slice(block * size, block * size + size) for block in table]
                return tuple(
                    np.concatenate([array[:, piece] for piece in pieces], axis=1)[:, :num_tokens]
                    for array in (keys, values)
                )
            """,
            "PagedKVCache.trim": """
                kept = blocks_for(self.seq_pos, self.pool.block_size)
                for table in self.tables:
                    if len(table) > kept:
                        self.pool.give_back(table[kept:])
                        table[kept:] = []
            """,
        },
    ),
    Right(
        name="another hash, and lookups that go through the block's number",
        bodies={
            "chain_digest": """
                text = b",".join(str(int(token)).encode() for token in tokens)
                return hashlib.sha256(parent + b":" + text).digest()[:16]
            """,
            "PrefixIndex.lookup": """
                digest = self.digest(b"" if parent is None else parent.digest, tokens)
                if digest in self.by_digest:
                    found = self.by_digest[digest]
                    if found.parent is parent and tuple(found.tokens) == tuple(tokens):
                        return digest, found
                return digest, None
            """,
            "PrefixIndex.find": """
                chain = [None]
                for piece in self.pieces(tokens):
                    known = self.lookup(chain[-1], piece)[1]
                    if not known:
                        return [entry.block for entry in chain[1:]]
                    chain.append(known)
                return [entry.block for entry in chain[1:]]
            """,
            "PrefixIndex.add": """
                parent, mine = None, []
                for i, piece in enumerate(self.pieces(tokens)):
                    digest, known = self.lookup(parent, piece)
                    if not known:
                        for other in (self.by_digest.get(digest), self.by_block.get(table[i])):
                            if other is not None and other in mine:
                                return
                        for other in (self.by_digest.get(digest), self.by_block.get(table[i])):
                            if other:
                                self.forget(other.block)
                        known = KnownBlock(table[i], digest, parent, piece)
                        self.by_digest[digest] = known
                        self.by_block[table[i]] = known
                    mine.append(known)
                    parent = known
            """,
            "PrefixIndex.forget": """
                if block not in self.by_block:
                    return []
                known = self.by_block.pop(block)
                self.by_digest.pop(known.digest)
                gone = [block]
                for child in list(known.children):
                    gone.extend(self.forget(child.block))
                if known.parent:
                    known.parent.children = [other for other in known.parent.children if other is not known]
                return gone
            """,
        },
    ),
    Right(
        name="books kept in another order",
        bodies={
            "BlockPool.take": """
                if count > len(self.free) + len(self.cached):
                    left = len(self.free) + len(self.cached)
                    raise OutOfBlocks(f"{count} blocks are wanted, {left} are left of {self.num_blocks}")
                for block in list(self.cached):
                    if len(self.free) >= count:
                        break
                    if block in self.cached:
                        gone = set(self.index.forget(block))
                        self.free |= gone & set(self.cached)
                        self.cached = {other: True for other in self.cached if other not in gone}
                chosen = self.place(count, after)
                for block in chosen:
                    self.free.remove(block)
                    self.references[block] += 1
                return chosen
            """,
            "BlockPool.hold": """
                for block in blocks:
                    if block in self.cached:
                        del self.cached[block]
                    self.references[block] = self.references[block] + 1
            """,
            "BlockPool.give_back": """
                left = list(self.references)
                for block in blocks:
                    left[block] -= 1
                    if left[block] < 0:
                        raise ValueError(f"block {block} is not held {blocks.count(block)} times")
                self.references = left
                for block in blocks[::-1]:
                    if left[block] == 0 and block in self.index:
                        self.cached[block] = None
                    elif left[block] == 0:
                        self.free.add(block)
            """,
            "PagedKVCache.make_room": """
                pool, size = self.pool, self.pool.block_size
                at = self.seq_pos // size
                plan = []
                for table in self.tables:
                    is_foreign = self.seq_pos % size > 0 and (
                        pool.references[table[at]] != 1 or table[at] in pool.index
                    )
                    plan.append((table, is_foreign, max(blocks_for(stop, size), len(table)) - len(table)))
                pool.check_available(sum(is_foreign + count for _, is_foreign, count in plan))
                for table, is_foreign, count in plan:
                    if is_foreign:
                        own = pool.duplicate(table[at])
                        pool.give_back([table[at]])
                        table[at] = own
                    if count:
                        table.extend(pool.take(count, after=table[-1] if len(table) else -1))
            """,
            "PagedKVCache.fork": """
                other = PagedKVCache(self.pool, batch_size=self.batch_size, max_seq_len=self.max_seq_len)
                kept = blocks_for(self.seq_pos, self.pool.block_size)
                other.tables = [table[:kept] for table in self.tables]
                for table in other.tables:
                    self.pool.hold(table)
                other.seq_pos = self.seq_pos
                return other
            """,
        },
    ),
    Right(
        name="rows shared with each other part by a copy for all but the last",
        bodies={
            "slots_of": """
                table = np.array(table, dtype=int).reshape(-1, 1)
                return (table * block_size + np.arange(block_size)).ravel()[start:stop]
            """,
            "BlockPool.read": """
                pairs = self.keys[layer_idx], self.values[layer_idx]
                blocks = np.array(table, int)
                if len(blocks) == 0 or (np.diff(blocks) == 1).all():
                    start = int(blocks[0]) * self.block_size if len(blocks) else 0
                    return pairs[0][:, start : start + num_tokens], pairs[1][:, start : start + num_tokens]
                slots = slots_of(table, 0, num_tokens, self.block_size)
                return pairs[0][:, slots], pairs[1][:, slots]
            """,
            "PagedKVCache.make_room": """
                pool, size = self.pool, self.pool.block_size
                at, needed, copies = self.seq_pos // size, 0, []
                rest = Counter(table[at] for table in self.tables) if self.seq_pos % size else Counter()
                others = {block: pool.references[block] - rest[block] for block in rest}
                for table in self.tables if self.seq_pos % size else ():
                    block = table[at]
                    rest[block] -= 1
                    if block in pool.index or others[block] or rest[block]:
                        copies.append(table)
                wanted = blocks_for(stop, size)
                needed = len(copies) + sum(max(0, wanted - len(table)) for table in self.tables)
                pool.check_available(needed)
                for table in self.tables:
                    if any(table is other for other in copies):
                        table[at], old = pool.duplicate(table[at]), table[at]
                        pool.give_back([old])
                    if wanted > len(table):
                        table += pool.take(wanted - len(table), table[-1] if table else -1)
            """,
        },
    ),
]
