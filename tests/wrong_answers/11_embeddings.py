"""Mistakes that students make in module 11."""

from wrong_answers import Wrong

WRONG = [
    Wrong(
        name="columns are taken instead of rows",
        part="test-take-rows",
        old="weight.take(ids, axis=0)",
        new="np.moveaxis(weight.take(ids % weight.shape[1], axis=1), 0, -1)",
    ),
    Wrong(
        name="the ids are flattened",
        part="test-take-rows",
        old="weight.take(ids, axis=0)",
        new="weight.take(ids.reshape(-1), axis=0)",
    ),
    Wrong(
        name="numbers are taken instead of rows",
        part="test-take-rows",
        old="weight.take(ids, axis=0)",
        new="weight.take(ids)",
    ),
    Wrong(
        name="negative ids count from the end",
        part="test-check-rows",
        old="ids.astype(np.uint64).max() >= num_rows",
        new="ids.max() >= num_rows",
    ),
    Wrong(
        name="an id as large as the table passes",
        part="test-check-rows",
        old="ids.astype(np.uint64).max() >= num_rows",
        new="ids.astype(np.uint64).max() > num_rows",
    ),
    Wrong(
        name="the message names an id that is in order",
        part="test-check-rows",
        old="        wrong = ids.min() if ids.min() < 0 else ids.max()\n",
        new="        wrong = ids.reshape(-1)[0]\n",
    ),
    Wrong(
        name="floats are cut to integers",
        part="test-check-rows",
        old='    if ids.dtype.kind not in "iu":\n',
        new='    if ids.dtype.kind not in "iuf":\n',
    ),
    Wrong(
        name="booleans pass as ids",
        part="test-check-rows",
        old='    if ids.dtype.kind not in "iu":\n',
        new='    if ids.dtype.kind not in "iub":\n',
    ),
    Wrong(
        name="no ids at all are an error",
        part="test-check-rows",
        old="    if ids.size and ids.astype",
        new="    if ids.astype",
    ),
    Wrong(
        name="the last slope of a repeated id wins",
        part="test-sum-rows",
        old="        slopes[start:stop].sum(axis=0, out=total[row])\n",
        new="        total[row] = slopes[stop - 1]\n",
    ),
    Wrong(
        name="the slopes of an id are averaged",
        part="test-sum-rows",
        old="        slopes[start:stop].sum(axis=0, out=total[row])\n",
        new="        slopes[start:stop].mean(axis=0, out=total[row])\n",
    ),
    Wrong(
        name="the slopes are not sorted with their ids",
        part="test-sum-rows",
        old="    ids, slopes = ids[order], slopes[order]\n",
        new="    ids = ids[order]\n",
    ),
    Wrong(
        name="the last run is lost",
        part="test-sum-rows",
        old="    bounds = np.append(starts, len(ids)).tolist()\n",
        new="    bounds = np.append(starts, len(ids) - 1).tolist()\n",
    ),
    Wrong(
        name="the ids are not sorted",
        part="test-sum-rows",
        old='    order = np.argsort(ids, kind="stable")\n',
        new="    order = np.arange(len(ids))\n",
    ),
    Wrong(
        name="the embedding does not check its ids",
        part="test-embedding",
        old="check_rows(ids, self.weight.shape[0])",
        new="as_array(ids)",
    ),
    Wrong(
        name="the embedding compares ids with the number of features",
        part="test-embedding",
        old="check_rows(ids, self.weight.shape[0])",
        new="check_rows(ids, self.weight.shape[1])",
    ),
    Wrong(
        name="the embedding goes around apply",
        part="test-embedding",
        old="apply(take_rows, self.weight, check_rows(ids, self.weight.shape[0]))",
        new="Tensor(take_rows(self.weight.data, check_rows(ids, self.weight.shape[0])))",
    ),
    Wrong(
        name="every piece of a text starts at position 0",
        part="test-learned-positions",
        old="        return self.table(np.arange(start_pos, stop))\n",
        new="        return self.table(np.arange(num_tokens))\n",
    ),
    Wrong(
        name="the last position cannot be used",
        part="test-learned-positions",
        old="        if stop > self.max_seq_len:\n"
        '            raise ValueError(f"the tokens reach position {stop - 1}, the last one is {self.max_seq_len - 1}")\n'
        "        return self.table",
        new="        if stop >= self.max_seq_len:\n"
        '            raise ValueError(f"the tokens reach position {stop - 1}, the last one is {self.max_seq_len - 1}")\n'
        "        return self.table",
    ),
    Wrong(
        name="only the number of tokens is compared with the table",
        part="test-learned-positions",
        old="        if stop > self.max_seq_len:\n"
        '            raise ValueError(f"the tokens reach position {stop - 1}, the last one is {self.max_seq_len - 1}")\n'
        "        return self.table",
        new="        if num_tokens > self.max_seq_len:\n"
        '            raise ValueError(f"the tokens reach position {stop - 1}, the last one is {self.max_seq_len - 1}")\n'
        "        return self.table",
    ),
    Wrong(
        name="the sines stand in the first half, the cosines in the second",
        part="test-sinusoidal-table",
        old="    table[..., 0::2] = np.sin(angles)\n    table[..., 1::2] = np.cos(angles)\n",
        new="    table[..., : embed_dim // 2] = np.sin(angles)\n    table[..., embed_dim // 2 :] = np.cos(angles)\n",
    ),
    Wrong(
        name="sine and cosine are exchanged",
        part="test-sinusoidal-table",
        old="    table[..., 0::2] = np.sin(angles)\n    table[..., 1::2] = np.cos(angles)\n",
        new="    table[..., 0::2] = np.cos(angles)\n    table[..., 1::2] = np.sin(angles)\n",
    ),
    Wrong(
        name="the exponent of the waves counts pairs, not columns",
        part="test-sinusoidal-table",
        old="    frequencies = base ** (-np.arange(0, embed_dim, 2) / embed_dim)\n",
        new="    frequencies = base ** (-np.arange(embed_dim // 2) / embed_dim)\n",
    ),
    Wrong(
        name="the waves are computed in float32",
        part="test-sinusoidal-table",
        old="    angles = as_array(positions, np.float64)[..., None] * frequencies\n    table = ",
        new="    angles = as_array(positions, np.float32)[..., None] * frequencies.astype(np.float32)\n    table = ",
    ),
    Wrong(
        name="the waves are multiplied by the wave length",
        part="test-sinusoidal-table",
        old="    frequencies = base ** (-np.arange(0, embed_dim, 2) / embed_dim)\n",
        new="    frequencies = base ** (np.arange(0, embed_dim, 2) / embed_dim)\n",
    ),
    Wrong(
        name="the base is always 10000",
        part="test-rotary-tables",
        old="    frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim)\n",
        new="    frequencies = 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)\n",
    ),
    Wrong(
        name="turned faster by the factors instead of slower",
        part="test-rotary-tables",
        old="frequencies = frequencies / as_array(factors, np.float64)",
        new="frequencies = frequencies * as_array(factors, np.float64)",
    ),
    Wrong(
        name="the factors are ignored",
        part="test-rotary-tables",
        old="    if factors is not None:\n        frequencies = frequencies / as_array(factors, np.float64)\n",
        new="",
    ),
    Wrong(
        name="the exponent of the rotary frequencies counts pairs",
        part="test-rotary-tables",
        old="    frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim)\n",
        new="    frequencies = base ** (-np.arange(head_dim // 2) / head_dim)\n",
    ),
    Wrong(
        name="the rotary tables start at position 1",
        part="test-rotary-tables",
        old="    angles = as_array(positions, np.float64)[..., None] * frequencies\n    return",
        new="    angles = (as_array(positions, np.float64)[..., None] + 1) * frequencies\n    return",
    ),
    Wrong(
        name="the rotary angles are rounded to float32 first",
        part="test-rotary-tables",
        old="    angles = as_array(positions, np.float64)[..., None] * frequencies\n    return",
        new="    angles = (as_array(positions, np.float64)[..., None] * frequencies).astype(np.float32)\n    return",
    ),
    Wrong(
        name="the rotary tables stay in float64",
        part="test-rotary-tables",
        old="    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)\n",
        new="    return np.cos(angles), np.sin(angles)\n",
    ),
    Wrong(
        name="sine comes before cosine",
        part="test-rotary-tables",
        old="    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)\n",
        new="    return np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)\n",
    ),
    Wrong(
        name="neighbours are turned instead of halves",
        part="test-apply-rotary",
        old="    first, second = x[..., :half], x[..., half:]\n"
        "    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)\n",
        new="    first, second = x[..., 0::2], x[..., 1::2]\n"
        "    turned = [first * cos - second * sin, second * cos + first * sin]\n"
        "    return np.stack(turned, axis=-1).reshape(x.shape)\n",
    ),
    Wrong(
        name="everything is turned the other way",
        part="test-apply-rotary",
        old="[first * cos - second * sin, second * cos + first * sin]",
        new="[first * cos + second * sin, second * cos - first * sin]",
    ),
    Wrong(
        name="the second half is turned by the turned first half",
        part="test-apply-rotary",
        old="    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)\n",
        new="    first = first * cos - second * sin\n"
        "    return np.concatenate([first, second * cos + first * sin], axis=-1)\n",
    ),
    Wrong(
        name="a minus is missing in the rotation",
        part="test-apply-rotary",
        old="[first * cos - second * sin, second * cos + first * sin]",
        new="[first * cos + second * sin, second * cos + first * sin]",
    ),
    Wrong(
        name="the table of one position is used for all",
        part="test-apply-rotary",
        old="    if x.shape[-1] % 2 or cos.shape[-2:] != (x.shape[-2], half):\n",
        new="    if x.shape[-1] % 2 or cos.shape[-1] != half:\n",
    ),
    Wrong(
        name="the rotation is done in place",
        part="test-apply-rotary",
        old="    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)\n",
        new="    kept = first * cos - second * sin\n"
        "    second[...] = second * cos + first * sin\n    first[...] = kept\n    return x\n",
    ),
    Wrong(
        name="the slope is turned forward",
        part="test-rotary-gradient",
        old="    return apply_rotary(grad, cos, -sin)\n",
        new="    return apply_rotary(grad, cos, sin)\n",
    ),
    Wrong(
        name="the slope is turned back and mirrored",
        part="test-rotary-gradient",
        old="    return apply_rotary(grad, cos, -sin)\n",
        new="    return apply_rotary(grad, -cos, sin)\n",
    ),
    Wrong(
        name="the tables are turned around for good",
        part="test-rotary-gradient",
        old="    return apply_rotary(grad, cos, -sin)\n",
        new="    np.negative(sin, out=sin)\n    return apply_rotary(grad, cos, sin)\n",
    ),
    Wrong(
        name="rotary positions start at 0 for every piece",
        part="test-rotary-embedding",
        old="self.cos[start_pos:stop], self.sin[start_pos:stop])",
        new="self.cos[: stop - start_pos], self.sin[: stop - start_pos])",
    ),
    Wrong(
        name="rotary positions count heads, not tokens",
        part="test-rotary-embedding",
        old="        stop = start_pos + x.shape[-2]\n",
        new="        stop = start_pos + x.shape[0]\n",
    ),
    Wrong(
        name="rotary positions beyond the table are left to chance",
        part="test-rotary-embedding",
        old="        if stop > self.max_seq_len:\n"
        '            raise ValueError(f"the tokens reach position {stop - 1}, the last one is {self.max_seq_len - 1}")\n'
        "        return apply(apply_rotary",
        new="        start_pos = min(start_pos, self.max_seq_len - x.shape[-2])\n"
        "        stop = start_pos + x.shape[-2]\n"
        "        return apply(apply_rotary",
    ),
    Wrong(
        name="the rotary embedding returns an array",
        part="test-rotary-embedding",
        old="        return apply(apply_rotary, x, self.cos",
        new="        return apply_rotary(np.asarray(x), self.cos",
    ),
]
