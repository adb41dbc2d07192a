"""Put positive errors in descending order without comparing them, and weigh them by rank.

An entry with a positive error is one non-negative int64, a *word*:

    bits 32..62   the error's float bits inverted, so that words ascend where errors descend
    bits  1..31   its place in the row, so that ties keep their order and no two words are equal
    bit   0       1 for foreground

The bits of positive floats grow with their value: words fall into buckets by their upper bits (one counting
pass, one scattering pass), and every bucket, small enough for the first-level cache by then, is sorted by its
remaining bits. The order of words is total, so the result does not depend on how a row was cut into runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lovasz_embed._ops.jit import jit

Array = NDArray[Any]

_BLOCK = 512  # entries whose keys are computed at once, vectorised, in the first-level cache
NOTHING = -(2**63)  # a label that no picture holds
ERROR, HINGE, SOFTMAX = 0, 1, 2  # what the values are: errors, logits of the hinge, probabilities of the softmax

_TOP = 0x7FFFFFFF  # the key of NaN: above every number, as in torch.sort
_FOREGROUND = 1 << 32  # counts of entries and of foreground share one int64


@jit
def compact(
    values: Array,
    labels: Array,
    value_start: int,
    label_start: int,
    length: int,
    label: int,
    ignored: int,
    kind: int,
    words: Array,
    at: int,
    weights: Array,
) -> tuple[int, int, int, int, int]:
    """Write the words of the positive errors of a run of neighbouring entries from words[at] on.

    `values[value_start : value_start + length]` are the run's values (see `error_of`) and their place in
    `values` is their place in the row; `labels` holds `label` for foreground and `ignored` for what counts
    nowhere. The run's part of `weights`, unless it is empty, becomes 0. Return the end of what was written, the
    smallest and the largest key among it, and how many entries are foreground, and ignored.
    """
    errors = np.empty(_BLOCK, values.dtype)
    keys = errors.view(np.int32) if errors.itemsize == 4 else np.empty(_BLOCK, np.int32)
    mask = np.empty(_BLOCK, np.uint8)
    some = np.empty(_BLOCK, np.uint8)
    eight = some.view(np.uint64)
    one = values.dtype.type(1)
    low: Any = _TOP
    high: Any = 0
    foreground: Any = 0
    out: Any = 0
    for first in range(0, length, _BLOCK):
        size = min(_BLOCK, length - first)
        place = value_start + first
        value = values[place : place + size]
        own = labels[label_start + first : label_start + first + size]
        found: Any = np.int32(0)
        for i in range(size):
            inside = own[i] == label
            mask[i] = inside
            found += np.int32(inside)
        if kind == HINGE:
            for i in range(size):
                errors[i] = one + (-value[i] if mask[i] else value[i])
        elif kind == SOFTMAX:
            for i in range(size):
                errors[i] = one - value[i] if mask[i] else value[i]
        else:
            for i in range(size):
                errors[i] = value[i]
        if ignored != NOTHING:
            dropped: Any = np.int32(0)
            for i in range(size):
                away = own[i] == ignored
                errors[i] = 0 if away else errors[i]
                dropped += np.int32(away)
            out += dropped
            if ignored == label:
                mask[:] = 0
                found = np.int32(0)
        foreground += found
        if weights.size:
            target = weights[place : place + size]
            for i in range(size):
                target[i] = 0
        _keys(errors[:size], keys)
        positive: Any = np.int32(0)
        most: Any = np.int32(0)
        for i in range(size):
            positive += np.int32(keys[i] > 0)
            most = max(most, keys[i])
        if positive == 0:
            continue
        high = max(high, np.int64(most))
        least: Any = np.uint32(_TOP)
        for i in range(size):
            least = min(least, np.uint32(keys[i] - np.int32(1)))  # keys of 0 and below wrap to the top
        low = min(low, np.int64(least) + 1)
        if positive < size // 4:
            some[size:] = 0
            for i in range(size):
                some[i] = keys[i] > 0
            for j in range(_BLOCK // 8):
                if eight[j]:
                    for i in range(8 * j, 8 * j + 8):
                        words[at] = (np.int64(keys[i] ^ _TOP) << 32) | ((place + i) << 1) | mask[i]
                        at += some[i]
        else:
            for i in range(size):
                words[at] = (np.int64(keys[i] ^ _TOP) << 32) | ((place + i) << 1) | mask[i]
                at += keys[i] > 0
    return at, low, high, foreground, out


@jit
def mark(labels: Array, occurs: Array) -> None:
    """Set occurs[label] for every label that occurs, of those from 0 to occurs.size - 1."""
    for i in range(labels.size):
        label = np.int64(labels[i])
        if 0 <= label < occurs.size:
            occurs[label] = True


@jit
def error_of(value: float, inside: bool, kind: int) -> float:
    """Return the error of one entry."""
    if kind == ERROR:
        return value
    if inside:
        return 1 - value
    return 1 + value if kind == HINGE else value


@jit
def _keys(errors: Array, keys: Array) -> None:
    """Write the upper 32 bits of every float: above 0 where, and only where, it is positive or NaN.

    For float32 `keys` are the errors' own bits, and only NaN is touched.
    """
    strange: Any = np.int32(0)
    for i in range(errors.size):
        strange += np.int32(errors[i] != errors[i])
    if errors.itemsize == 8:
        wide = errors.view(np.int64)
        for i in range(errors.size):
            key = np.int32(wide[i] >> 32)
            keys[i] = np.int32(1) if key == 0 and errors[i] > 0 else key
    if strange:
        for i in range(errors.size):
            if errors[i] != errors[i]:
                keys[i] = np.int32(_TOP)


@jit
def count(words: Array, start: int, stop: int, base: int, shift: int, counts: Array) -> None:
    """Count entries, and foreground in the upper half, of every bucket."""
    for i in range(start, stop):
        word = words[i]
        counts[(word >> shift) - base] += 1 + ((word & 1) << 32)


@jit
def scatter(words: Array, start: int, stop: int, base: int, shift: int, places: Array, into: Array) -> None:
    """Move every word to the next free place of its bucket."""
    for i in range(start, stop):
        word = words[i]
        bucket = (word >> shift) - base
        into[places[bucket]] = word
        places[bucket] += 1


@jit
def weigh(
    words: Array,
    spare: Array,
    values: Array,
    kind: int,
    starts: Array,
    seen: Array,
    first: int,
    last: int,
    shift: int,
    foreground: int,
    weights: Array,
    sums: Array,
) -> None:
    """Sort the buckets first ... last - 1 and weigh their entries in closed form (docs/mathematics.md).

    `starts` and `seen` tell the entries and the foreground before every bucket, `foreground` the row's total.
    Writes the slope of the loss along every entry's logit, -weight for foreground and +weight for background,
    to its place in `weights` (zero before; empty: not wanted), and every bucket's share of the loss to `sums`.
    """
    wanted = weights.size > 0
    digits = np.empty(2048, np.int64)
    float_bits = np.empty(1, np.int32)
    narrow = float_bits.view(np.float32)
    for bucket in range(first, last):
        start, stop = starts[bucket], starts[bucket + 1]
        before = seen[bucket]
        # Once all foreground is behind, nothing is left to lose; without any, the first entry costs everything.
        if start == stop or (before == foreground and start > 0):
            continue
        source = _sorted(words, spare, start, stop, shift, digits)
        if values.itemsize == 8:
            _refine(source, values, kind, start, stop)
        loss = 0.0
        for i in range(start, stop):
            word = source[i]
            place = (word & 0xFFFFFFFF) >> 1
            if values.itemsize == 4:
                float_bits[0] = np.int32((word >> 32) ^ _TOP)
                error = float(narrow[0])
            else:
                error = error_of(values[place], (word & 1) == 1, kind)
            inside = word & 1
            union = float(foreground + i - before)  # before this entry
            if foreground == 0:
                slope = 1.0 if i == 0 else 0.0
            else:
                # Without a branch: which it is can not be foretold where the two classes mix.
                slope = float(-1 if inside else foreground - before) / (union if inside else union * (union + 1.0))
            before += inside
            loss += abs(slope) * error
            if wanted:
                weights[place] = slope
        sums[bucket] = loss


@jit
def _sorted(words: Array, spare: Array, start: int, stop: int, shift: int, digits: Array) -> Array:
    """Sort one bucket by the bits below `shift`; return the array, of the two, that holds the result."""
    size = stop - start
    if size <= 24:
        for i in range(start + 1, stop):
            word = words[i]
            j = i - 1
            while j >= start and words[j] > word:
                words[j + 1] = words[j]
                j -= 1
            words[j + 1] = word
        return words
    bits = 5
    while bits < 11 and 1 << bits < size:
        bits += 1
    # Places ascend within a bucket already: only the key's bits are left, in passes of equal width.
    passes = (shift - 32 + bits - 1) // bits
    bits = (shift - 32 + passes - 1) // max(passes, 1)
    mask = (1 << bits) - 1
    source, target = words, spare
    for number in range(passes):
        low = 32 + number * bits
        digits[: mask + 1] = 0
        for i in range(start, stop):
            digits[(source[i] >> low) & mask] += 1
        total = start
        for digit in range(mask + 1):
            here = digits[digit]
            digits[digit] = total
            total += here
        for i in range(start, stop):
            word = source[i]
            digit = (word >> low) & mask
            target[digits[digit]] = word
            digits[digit] += 1
        source, target = target, source
    return source


@jit
def _refine(words: Array, values: Array, kind: int, start: int, stop: int) -> None:
    """Order float64 errors that agree in their upper 32 bits, by what is below."""
    first = start
    while first < stop:
        last = first + 1
        while last < stop and words[last] >> 32 == words[first] >> 32:
            last += 1
        if last - first > 1:
            falling = np.empty(last - first, values.dtype)
            for i in range(first, last):
                falling[i - first] = -error_of(values[(words[i] & 0xFFFFFFFF) >> 1], (words[i] & 1) == 1, kind)
            # Ties keep their places: mergesort is stable. NaN comes first among words and last among numbers.
            if falling[0] == falling[0]:
                words[first:last] = words[first:last][np.argsort(falling, kind="mergesort")]
        first = last


@jit
def weigh_row(
    words: Array,
    spare: Array,
    values: Array,
    kind: int,
    size: int,
    low: int,
    high: int,
    foreground: int,
    weights: Array,
) -> float:
    """Do all of it for the first `size` words, one row, in one call; return the loss."""
    if size == 0:
        return 0.0
    base, shift, buckets = grid(size, low, high)
    counts = np.zeros(buckets, np.int64)
    count(words, 0, size, base, shift, counts)
    starts = np.empty(buckets + 1, np.int64)
    seen = np.empty(buckets + 1, np.int64)
    places = np.empty(buckets, np.int64)
    starts[0] = 0
    seen[0] = 0
    for bucket in range(buckets):
        places[bucket] = starts[bucket]
        starts[bucket + 1] = starts[bucket] + counts[bucket] % _FOREGROUND
        seen[bucket + 1] = seen[bucket] + counts[bucket] // _FOREGROUND
    scatter(words, 0, size, base, shift, places, spare)
    sums = np.zeros(buckets)
    weigh(spare, words, values, kind, starts, seen, 0, buckets, shift, foreground, weights, sums)
    total = 0.0
    for bucket in range(buckets):
        total += sums[bucket]
    return total


@jit
def grid(size: int, low: int, high: int) -> tuple[int, int, int]:
    """Choose the buckets for keys from `low` to `high`: their first upper bits, the bits below, their number.

    About 512 entries a bucket where keys are spread evenly, at most 8192 buckets: the places that the scattering
    pass writes to next then stay in the second-level cache.
    """
    first, last = high ^ _TOP, low ^ _TOP
    wanted = 0
    while wanted < 13 and size >> (9 + wanted) > 0:
        wanted += 1
    shift = 0
    while (last - first) >> shift >= 1 << wanted:
        shift += 1
    base = first >> shift
    return base, shift + 32, (last >> shift) - base + 1
