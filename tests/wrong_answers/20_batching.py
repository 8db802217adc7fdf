"""Mistakes that students make in module 20."""

from wrong_answers import Wrong

WRONG = [
    Wrong(
        name="the rows of a batch one after the other",
        part="test-static-steps",
        old="return sum(max(lengths[i : i + slots]) for",
        new="return sum(sum(lengths[i : i + slots]) for",
    ),
    Wrong(
        name="the last group is forgotten if it is smaller",
        part="test-static-steps",
        old="for i in range(0, len(lengths), slots))",
        new="for i in range(0, len(lengths) - slots + 1, slots))",
    ),
    Wrong(
        name="texts dealt out in turn, whichever row is free",
        part="test-continuous-steps",
        old="for length in lengths:\n        first = free_at.index(min(free_at))",
        new="for i, length in enumerate(lengths):\n        first = i % slots",
    ),
    Wrong(
        name="it ends when the first row is free",
        part="test-continuous-steps",
        old="return max(free_at)",
        new="return min(free_at)",
    ),
    Wrong(
        name="only the newest token is unread",
        part="test-unread",
        old="return self.tokens[self.cache.seq_pos :]",
        new="return self.tokens[-1:]",
    ),
    Wrong(
        name="nothing but the prompt is ever unread",
        part="test-unread",
        old="return self.tokens[self.cache.seq_pos :]",
        new="return self.tokens[self.cache.seq_pos : self.num_prompt]",
    ),
    Wrong(
        name="a stop token at the end of the prompt stops it",
        part="test-done",
        old="return written >= self.max_new_tokens or (written > 0 and self.tokens[-1] in self.stop_tokens)",
        new="return written >= self.max_new_tokens or self.tokens[-1] in self.stop_tokens",
    ),
    Wrong(
        name="one token more than was asked for",
        part="test-done",
        old="return written >= self.max_new_tokens or",
        new="return written > self.max_new_tokens or",
    ),
    Wrong(
        name="who was cancelled goes on",
        part="test-done",
        old="if self.cancelled or self.error is not None or self.text_stopped:",
        new="if self.error is not None or self.text_stopped:",
    ),
    Wrong(
        name="a stop string stops nothing",
        part="test-done",
        old="if self.cancelled or self.error is not None or self.text_stopped:",
        new="if self.cancelled or self.error is not None:",
    ),
    Wrong(
        name="of several stop tokens one is looked for",
        part="test-done",
        old="self.tokens[-1] in self.stop_tokens)",
        new="self.tokens[-1] == min(self.stop_tokens, default=None))",
    ),
    Wrong(
        name="always the likeliest token",
        part="test-take",
        old="(token,) = self.choose(logits[None])",
        new="token = logits.argmax()",
    ),
    Wrong(
        name="the tokens of those who write count towards the chunk",
        part="test-share-out",
        old="if waiting == 1:",
        new="if waiting == 0:",
    ),
    Wrong(
        name="a whole chunk for each prompt",
        part="test-share-out",
        old="left -= piece",
        new="left = chunk",
    ),
    Wrong(
        name="a prompt that does not fit into the chunk waits for ever",
        part="test-share-out",
        old="piece = min(waiting, chunk)",
        new="piece = waiting",
    ),
    Wrong(
        name="a piece is cut to what the neighbours leave",
        part="test-share-out",
        old="elif piece <= left:\n            counts.append(piece)\n            left -= piece",
        new="elif left:\n            counts.append(min(piece, left))\n            left -= counts[-1]",
    ),
    Wrong(
        name="behind a piece that waits all wait",
        part="test-share-out",
        old="        else:\n            counts.append(0)",
        new="        else:\n            counts.append(0)\n            left = 0",
    ),
    Wrong(
        name="positions count from 0 in each piece",
        part="test-flatten",
        old="[start + i for piece, start in",
        new="[i for piece, start in",
    ),
    Wrong(
        name="positions are the places in the list",
        part="test-flatten",
        old="np.array(positions)[:, None], rows",
        new="np.arange(len(positions))[:, None], rows",
    ),
    Wrong(
        name="the queries' groups are taken for their tokens",
        part="test-flat-layer",
        old="query[rows].swapaxes(0, -2)",
        new="query[rows].swapaxes(0, 2)",
    ),
    Wrong(
        name="the neighbours' keys: everybody writes into the first one's cache",
        part="test-flat-layer",
        old="Tensor(v), request.cache, self.layer_idx)",
        new="Tensor(v), self.front.reading[0][0].cache, self.layer_idx)",
        also=("test-failing-alone",),
    ),
    Wrong(
        name="all layers write under number 0",
        part="test-flat-layer",
        old="Tensor(v), request.cache, self.layer_idx)",
        new="Tensor(v), request.cache, 0)",
        also=("test-failing-alone",),
    ),
    Wrong(
        name="each layer commits",
        part="test-flat-layer",
        old="heads[rows] = answer.data.swapaxes(0, -2)",
        new="heads[rows] = answer.data.swapaxes(0, -2)\n"
        "                request.cache.advance(rows.stop - rows.start)",
        also=("test-failing-alone",),
    ),
    Wrong(
        name="one full cache stops all",
        part="test-failing-alone",
        old="answer = attention_with_cache(Tensor(q), Tensor(k), Tensor(v), request.cache, self.layer_idx)\n"
        "            except FAILURES as error:\n                request.error = error",
        new="answer = attention_with_cache(Tensor(q), Tensor(k), Tensor(v), request.cache, self.layer_idx)\n"
        "            except FAILURES as error:\n                request.error = error\n                raise",
    ),
    Wrong(
        name="mistakes of the program and Ctrl-C are taken for refusals",
        part="test-failing-alone",
        old="answer = attention_with_cache(Tensor(q), Tensor(k), Tensor(v), request.cache, self.layer_idx)\n"
        "            except FAILURES as error:",
        new="answer = attention_with_cache(Tensor(q), Tensor(k), Tensor(v), request.cache, self.layer_idx)\n"
        "            except BaseException as error:",
    ),
    Wrong(
        name="later layers go on writing for who has failed",
        part="test-failing-alone",
        old="if request.error is not None:\n                continue\n            q, k, v =",
        new="q, k, v =",
    ),
    Wrong(
        name="logits of every token",
        part="test-read",
        old="iter(self.model.logits(hidden[last]).data[:, 0] if last else ())",
        new="iter(self.model.logits(hidden).data[last, 0] if last else ())",
    ),
    Wrong(
        name="a token is chosen in the middle of a prompt",
        part="test-read",
        old="[request.error is None and n == len(request.unread()) for request, n in pieces]",
        new="[request.error is None for request, n in pieces]",
    ),
    Wrong(
        name="logits of the first token of a piece",
        part="test-read",
        old="[where.stop - 1 for where, wanted",
        new="[where.start for where, wanted",
    ),
    Wrong(
        name="one more than may run",
        part="test-admit",
        old="while self.waiting and len(self.running) < self.max_requests:",
        new="while self.waiting and len(self.running) <= self.max_requests:",
    ),
    Wrong(
        name="who came last joins first",
        part="test-admit",
        old="request = self.waiting[0]",
        new="self.waiting.rotate(1)\n            request = self.waiting[0]",
    ),
    Wrong(
        name="one without memory ends, though others will give some back",
        part="test-admit",
        old="                if self.waiting_helps(error):\n                    break\n",
        new="",
    ),
    Wrong(
        name="who waits is overtaken",
        part="test-admit",
        old="                if self.waiting_helps(error):\n                    break\n",
        new="                if self.waiting_helps(error):\n                    self.waiting.rotate(-1)\n"
        "                    if request.failing != self.waiting[0].failing:\n"
        "                        continue\n                    break\n",
    ),
    Wrong(
        name="who does not join keeps its cache",
        part="test-admit",
        old="                self.release(request)\n                if self.waiting_helps",
        new="                if self.waiting_helps",
    ),
    Wrong(
        name="nobody gives the memory back",
        part="test-retire",
        old="        for request in self.running:\n            if request.done:\n"
        "                self.release(request)\n",
        new="",
    ),
    Wrong(
        name="the list is changed while it is gone through: every second one stays",
        part="test-retire",
        old="                self.release(request)\n"
        "        self.running = [request for request in self.running if not request.done]\n",
        new="                self.running.remove(request)\n                self.release(request)\n",
    ),
    Wrong(
        name="first the commit, then the token",
        part="test-step",
        old="                if logits is not None:\n                    request.take(logits)\n"
        "                    written.append(request)\n                request.cache.advance(n)\n",
        new="                request.cache.advance(n)\n                if logits is not None:\n"
        "                    request.take(logits)\n                    written.append(request)\n",
    ),
    Wrong(
        name="what is read of a prompt is not committed before its end",
        part="test-step",
        old="                request.cache.advance(n)\n",
        new="                    request.cache.advance(n)\n",
    ),
    Wrong(
        name="who joins waits for the next step",
        part="test-step",
        old="        self.retire()\n        self.admit()\n        if not self.running:\n            return []\n",
        new="        self.retire()\n        if not self.running:\n            self.admit()\n            return []\n",
    ),
]
