"""Memory that is free again: what glibc and torch keep of it, and when they give it back."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
NEVER_TRIM, DEFAULT_TRIM, DEFAULT_MMAPS = (1 << 31) - 1, 128 * 1024, 65536


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory in the process, for the next tensor, until the end of the block.

    By default glibc returns each large tensor to the system as it dies, and the next one of that size pays for fresh
    pages: 10 to 30 % of a training step on the CPU. No effect where there is no glibc.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, DEFAULT_MMAPS)
        library.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM)
        library.malloc_trim(0)


def give_back_memory() -> None:
    """Collect garbage and return what is free to the system, and to a GPU's other processes; also between what is in use: glibc
    otherwise keeps it, scattered, under whatever comes next."""
    gc.collect()
    if torch.cuda.is_initialized():  # torch keeps what it freed, where the sampler's own process cannot have it
        torch.cuda.empty_cache()
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
