"""Near-duplicate texts, exactly: word 5-gram Jaccard similarity with prefix filtering.

Two sets with Jaccard similarity of at least s must share a shingle among the first |x| - ceil(s |x|) + 1 shingles of
each, under any common order (Chaudhuri et al. 2006; Bayardo et al. 2007). In order of rising frequency these are the
rarest ones, so the wording that a template repeats in every prompt is never looked up, and no pair above the threshold is
missed (as MinHash would miss some).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 5
_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 1], np.uint64)


def near_duplicates(texts: Sequence[str], threshold: float) -> list[bool]:
    """For each text, whether its similarity with an earlier text that is not itself one is at least ``threshold``.

    Words are parts between white space, in any case; a text of fewer than 5 words is one shingle as a whole.
    """
    flat, starts = _ranked_shingles(texts)
    sizes = np.diff(starts)
    prefixes = sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1
    kept_with: dict[int, list[int]] = {}  # shingle -> kept texts that have it in their prefix
    mark = np.zeros(int(flat.max(initial=0)) + 1, bool)
    dropped = []
    for i, size in enumerate(sizes):
        shingles = flat[starts[i] : starts[i + 1]]
        prefix = shingles[: min(prefixes[i], size)].tolist()
        near = {j for shingle in prefix for j in kept_with.get(shingle, ())}
        if near:
            mark[shingles] = True
            drop = (
                _best_similarity(np.fromiter(near, np.int64), flat, starts, mark, size, threshold) >= threshold - 1e-9
            )
            mark[shingles] = False
        else:
            drop = False
        dropped.append(drop)
        if not drop:
            for shingle in prefix:
                kept_with.setdefault(shingle, []).append(i)
    return dropped


def _best_similarity(
    others: NDArray[np.int64],
    flat: NDArray[np.int64],
    starts: NDArray[np.int64],
    mark: NDArray[np.bool_],
    size: int,
    threshold: float,
) -> float:
    """Highest Jaccard similarity of the marked set (of ``size``) with ``others``; 0 where sizes alone rule it out."""
    lengths = starts[others + 1] - starts[others]
    possible = np.minimum(lengths, size) >= threshold * np.maximum(lengths, size) - 1e-9
    others, lengths = others[possible], lengths[possible]
    if not len(others):
        return 0.0
    ends = np.cumsum(lengths)
    index = np.arange(ends[-1]) + np.repeat(starts[others] - (ends - lengths), lengths)
    shared = np.add.reduceat(mark[flat[index]].astype(np.int64), ends - lengths)
    return float(np.max(shared / (lengths + size - shared)))


def _ranked_shingles(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(flat, starts): text i has the distinct shingles flat[starts[i] : starts[i + 1]], rarest first.

    Shingles are numbered by rising frequency over all texts.
    """
    codes: dict[str, int] = {}
    per_text = [_shingles(text, codes) for text in texts]
    sizes = np.array([len(s) for s in per_text], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    if not per_text:
        return np.zeros(0, np.int64), starts
    _, number, frequency = np.unique(np.concatenate(per_text), return_inverse=True, return_counts=True)
    rank = np.empty(len(frequency), np.int64)
    rank[np.argsort(frequency, kind="stable")] = np.arange(len(frequency))
    flat = rank[number]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return flat[np.lexsort((flat, owner))], starts


def _shingles(text: str, codes: dict[str, int]) -> NDArray[np.uint64]:
    """Distinct 64-bit hashes of the text's word 5-grams; ``codes`` keeps the hashes of words seen."""
    words = text.casefold().split()
    if len(words) < SHINGLE_WORDS:
        return np.array([_code(" ".join(words), codes)], np.uint64)
    hashes = np.array([_code(w, codes) for w in words], np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(hashes, SHINGLE_WORDS)
    return np.unique((windows * _MULTIPLIERS).sum(axis=1, dtype=np.uint64))


def _code(word: str, codes: dict[str, int]) -> int:
    code = codes.get(word)
    if code is None:
        code = codes[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
    return code
