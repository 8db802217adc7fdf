"""Right answers to module 10."""

from right_answers import Right

RIGHT = [
    Right(
        name="comprehensions, zip for pairwise, sorted keys",
        bodies={
            "CharTokenizer.encode": """
                try:
                    return [self.ids[c] for c in text]
                except KeyError as error:
                    c = error.args[0]
                    raise ValueError(f"{c!r} at position {text.index(c)} is unknown") from None
            """,
            "CharTokenizer.decode": """
                text = ""
                for n, i in enumerate(ids):
                    if i < 0 or i >= self.vocab_size:
                        raise ValueError(f"position {n}: id {i} is not in 0..{self.vocab_size - 1}")
                    text += self.vocabulary[i]
                return text
            """,
            "count_pairs": """
                total = Counter()
                for n in range(len(words)):
                    for left, right in zip(words[n], words[n][1:]):
                        total[left, right] = total[left, right] + counts[n]
                return total
            """,
            "best_pair": "return min(pair_counts, key=lambda pair: (-pair_counts[pair], pair))",
            "merge_pair": """
                merged = []
                rest = iter(range(len(ids)))
                for i in rest:
                    if tuple(ids[i : i + 2]) == tuple(pair):
                        merged.append(new_id)
                        next(rest)
                    else:
                        merged.append(ids[i])
                return merged
            """,
            "learn_merges_slowly": """
                counts = list(word_counts.values())
                words = [tuple(word) for word in word_counts.keys()]
                merges = []
                for new_id in range(256, 256 + num_merges):
                    pairs = count_pairs(words, counts)
                    if len(pairs) == 0:
                        return merges
                    merges.append(best_pair(pairs))
                    words = [tuple(merge_pair(word, merges[-1], new_id)) for word in words]
                return merges
            """,
            "build_vocabulary": """
                table = {i: bytes((i,)) for i in range(256)}
                for a, b in merges:
                    table[len(table)] = table[a] + table[b]
                return list(table.values())
            """,
            "encode_word": """
                never = float("inf")
                ids = list(word)
                while len(ids) > 1:
                    pair = min(zip(ids, ids[1:]), key=lambda p: merge_ids.get(p, never))
                    if pair not in merge_ids:
                        break
                    ids = merge_pair(ids, pair, merge_ids[pair])
                return ids
            """,
            "split_special": """
                pieces = [text]
                for name in sorted(names, key=lambda name: (-len(name), name)):
                    cut = []
                    for piece in pieces:
                        if piece in names:
                            cut.append(piece)
                            continue
                        parts = piece.split(name)
                        for n, part in enumerate(parts):
                            cut += [name, part] if n else [part]
                    pieces = cut
                return [piece for piece in pieces if piece]
            """,
            "BPETokenizer.encode": """
                def ids_of(piece):
                    if piece in names:
                        return [self.special_tokens[piece]]
                    return [i for word in split_words(piece) for i in self.encode_cached(word)]

                return sum((ids_of(piece) for piece in split_special(text, names)), [])
            """,
            "StreamDecoder.feed": """
                ids = check_ids([token_id], len(self.vocabulary))
                return self.decoder.decode(self.vocabulary[ids[0]], False)
            """,
        },
    ),
    Right(
        name="a beginner, indices and prints",
        bodies={
            "CharTokenizer.encode": """
                ergebnis = []
                for i in range(len(text)):
                    zeichen = text[i]
                    if zeichen in self.vocabulary:
                        ergebnis.append(self.vocabulary.index(zeichen))
                    else:
                        raise ValueError("unbekannt: " + repr(zeichen) + " an Stelle " + str(i))
                return ergebnis
            """,
            "count_pairs": """
                paare = {}
                for wort, anzahl in zip(words, counts):
                    for i in range(len(wort) - 1):
                        paar = (wort[i], wort[i + 1])
                        if paar in paare:
                            paare[paar] += anzahl
                        else:
                            paare[paar] = anzahl
                return Counter(paare)
            """,
            "best_pair": """
                bestes = None
                for paar in pair_counts:
                    if bestes is None:
                        bestes = paar
                    elif pair_counts[paar] > pair_counts[bestes]:
                        bestes = paar
                    elif pair_counts[paar] == pair_counts[bestes] and paar < bestes:
                        bestes = paar
                return bestes
            """,
            "merge_pair": """
                ergebnis = list(ids)
                i = 0
                while i < len(ergebnis) - 1:
                    if ergebnis[i] == pair[0] and ergebnis[i + 1] == pair[1]:
                        ergebnis[i : i + 2] = [new_id]
                    i += 1
                return ergebnis
            """,
            "learn_merges": """
                for ort in range(len(words)):
                    for paar in zip(words[ort], words[ort][1:]):
                        homes[paar].add(ort)
                for runde in range(num_merges):
                    if len(pair_counts) == 0:
                        break
                    bestes = best_pair(pair_counts)
                    for ort in sorted(homes[bestes]):
                        alt = words[ort]
                        neu = merge_pair(alt, bestes, 256 + runde)
                        if neu == alt:
                            continue
                        pair_counts.subtract({p: c * counts[ort] for p, c in Counter(zip(alt, alt[1:])).items()})
                        pair_counts.update({p: c * counts[ort] for p, c in Counter(zip(neu, neu[1:])).items()})
                        for paar in set(zip(alt, alt[1:])) | set(zip(neu, neu[1:])):
                            homes[paar].add(ort)
                            if pair_counts[paar] == 0:
                                del pair_counts[paar]
                        words[ort] = neu
                    merges.append(bestes)
                return merges
            """,
            "build_vocabulary": """
                vokabular = []
                for i in range(256):
                    vokabular.append(i.to_bytes(1, "big"))
                for paar in merges:
                    vokabular.append(vokabular[paar[0]] + vokabular[paar[1]])
                print("Groesse:", len(vokabular))
                return vokabular
            """,
            "encode_word": """
                ids = [b for b in word]
                while True:
                    bestes = None
                    for i in range(len(ids) - 1):
                        paar = (ids[i], ids[i + 1])
                        if paar in merge_ids and (bestes is None or merge_ids[paar] < merge_ids[bestes]):
                            bestes = paar
                    if bestes is None:
                        break
                    ids = merge_pair(ids, bestes, merge_ids[bestes])
                return ids
            """,
            "BPETokenizer.decode": """
                alles = b""
                for i in check_ids(ids, len(self.vocabulary)):
                    alles = alles + self.vocabulary[i]
                return str(alles, "utf-8", "replace")
            """,
        },
    ),
]
