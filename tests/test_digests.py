"""Hashes of large files are remembered, and never for a file that changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from nashtune.model import digests
from nashtune.model.digests import file_digest

OLD = 1_000_000_000


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(digests, "REMEMBERED_BYTES", 4)
    file = tmp_path / "weights"
    file.write_bytes(b"first")
    os.utime(file, ns=(OLD, OLD))
    return file


def test_an_unchanged_file_is_read_once(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = file_digest(large, tmp_path / "memory")
    assert first == hashlib.sha256(b"first").digest()
    monkeypatch.setattr(digests, "_read", lambda file: pytest.fail("read again"))
    assert file_digest(large, tmp_path / "memory") == first


@pytest.mark.parametrize("how", ["time", "size", "replaced", "damaged note"])
def test_a_changed_file_is_read_again(how: str, large: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    file_digest(large, memory)
    text = b"other" if how != "size" else b"longer"
    if how == "replaced":
        other = tmp_path / "other"
        other.write_bytes(text)
        other.replace(large)
    else:
        large.write_bytes(text)
    os.utime(large, ns=(OLD, OLD + (how == "time")))
    if how == "damaged note":
        for note in memory.iterdir():
            note.write_text("{")
    assert file_digest(large, memory) == hashlib.sha256(text).digest()


def test_a_file_that_may_still_change_is_not_remembered(large: Path, tmp_path: Path) -> None:
    large.touch()
    file_digest(large, tmp_path / "memory")
    assert not (tmp_path / "memory").exists()
