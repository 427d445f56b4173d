"""Near-duplicate texts, exactly: word 5-gram Jaccard similarity with prefix filtering.

Two sets of sizes at least a and similar enough to share a elements have their k-th common element, under any common
order, among the first |x| - a + k of each (Chaudhuri et al. 2006; Bayardo et al. 2007; Wang et al. 2012). In order of
rising frequency these are the rarest ones, so the wording that a template repeats in every prompt is hardly ever looked
up, and no pair above the threshold is missed, as it might be with MinHash.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

SHINGLE_WORDS = 5
PREFIX_SHARED = 3  # k above: common elements asked of two prefixes, where the sets are large enough to have as many
EPSILON = 1e-9  # rounding of threshold * size


def near_duplicates(texts: Sequence[str], threshold: float) -> list[bool]:
    """For each text, whether its similarity with an earlier text that is not itself one is at least ``threshold`` > 0.

    Words are parts between white space, in any case; a text of fewer than 5 words is one shingle as a whole.
    """
    flat, starts = _ranked_shingles(texts)
    sizes = np.diff(starts)
    least = np.ceil(threshold * sizes - EPSILON).astype(np.int64)  # elements shared with any set similar to this one
    asked = np.minimum(np.ceil(threshold * least - EPSILON).astype(np.int64), PREFIX_SHARED).tolist()
    prefix_ends = (starts[:-1] + np.minimum(sizes - least + PREFIX_SHARED, sizes)).tolist()
    kept_with: dict[int, array[int]] = {}  # shingle -> kept texts that have it in their prefix
    mark = np.zeros(int(flat.max(initial=0)) + 1, bool)
    dropped = []
    for i, (start, end) in enumerate(zip(starts.tolist(), prefix_ends, strict=False)):
        prefix = flat[start:end].tolist()
        lists = [kept for shingle in prefix if (kept := kept_with.get(shingle)) is not None]
        drop = False
        if len(lists) >= asked[i]:
            candidates = _in_at_least(lists, asked[i])
            shingles = flat[start : starts[i + 1]]
            mark[shingles] = True
            drop = bool(_best_similarity(candidates, flat, starts, mark, len(shingles)) >= threshold - EPSILON)
            mark[shingles] = False
        dropped.append(drop)
        if not drop:
            for shingle in prefix:
                kept_with.setdefault(shingle, array("q")).append(i)
    return dropped


def _in_at_least(lists: Sequence[array[int]], k: int) -> Ints:
    """The numbers that are in at least ``k`` of the lists (each without repeats)."""
    together = np.sort(np.concatenate([np.frombuffer(one, np.int64) for one in lists]))
    return np.unique(together[k - 1 :][together[k - 1 :] == together[: len(together) - k + 1]])


def _best_similarity(others: Ints, flat: Ints, starts: Ints, mark: NDArray[np.bool_], size: int) -> float:
    """Highest Jaccard similarity of the marked set (of ``size``) with the sets ``others``; 0 without any."""
    if not len(others):
        return 0.0
    lengths = starts[others + 1] - starts[others]
    ends = np.cumsum(lengths)
    index = np.arange(ends[-1]) + np.repeat(starts[others] - (ends - lengths), lengths)
    shared = np.add.reduceat(mark[flat[index]].astype(np.int64), ends - lengths)
    return float(np.max(shared / (lengths + size - shared)))


def _ranked_shingles(texts: Sequence[str]) -> tuple[Ints, Ints]:
    """(flat, starts): text i has the distinct shingles flat[starts[i] : starts[i + 1]], rarest first.

    Shingles are numbered by rising frequency over all texts.
    """
    hashes, owner = _shingle_hashes(texts)
    order = np.lexsort((hashes, owner))
    hashes, owner = hashes[order], owner[order]
    first = np.ones(len(hashes), bool)
    first[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
    hashes, owner = hashes[first], owner[first]
    _, number, frequency = np.unique(hashes, return_inverse=True, return_counts=True)
    rank = np.empty(len(frequency), np.int64)
    rank[np.argsort(frequency, kind="stable")] = np.arange(len(frequency))
    flat = rank[number]
    starts = np.searchsorted(owner, np.arange(len(texts) + 1))
    return flat[np.lexsort((flat, owner))], starts


def _shingle_hashes(texts: Sequence[str]) -> tuple[NDArray[np.uint64], Ints]:
    """64-bit hashes of every word 5-gram of every text (with repeats), and the number of the text each is from."""
    codes: dict[str, int] = {}
    words, counts = array("Q"), array("q")
    for text in texts:
        parts = text.casefold().split()
        if len(parts) < SHINGLE_WORDS:  # one shingle: the text, filled up so that it fills one window
            parts = [" ".join(parts), *[""] * (SHINGLE_WORDS - 1)]
        words.extend([codes[p] if p in codes else codes.setdefault(p, _word_hash(p)) for p in parts])
        counts.append(len(parts))
    if not counts:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    sizes = np.frombuffer(counts, np.int64)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    of_word = np.frombuffer(words, np.uint64)
    span = len(of_word) - SHINGLE_WORDS + 1
    hashes = np.zeros(span, np.uint64)
    for j in range(SHINGLE_WORDS):  # a polynomial in an odd number, modulo 2**64
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + of_word[j : j + span]
    inside = owner[:span] == owner[SHINGLE_WORDS - 1 :]
    return hashes[inside], owner[:span][inside]


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())
