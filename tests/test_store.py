"""Files that are whole or absent, units created once, records that survive the disk."""

import dataclasses
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nashtune.errors import RunLockedError, StoreError
from nashtune.records import Constraint, Judgment, LogProb, Message, Pair, Prompt, Response, Usage
from nashtune.store import tables
from nashtune.store.files import create_once, exclusive, read_json, remove_partials, write_atomic, write_json

PROMPT = Prompt.make(
    [Message("system", "Be brief."), Message("user", "Kites? “é” \u2028 \N{KITE}")],
    teacher="Yes.",
    constraints=(Constraint("keywords", {"words": ["a", "b"], "n": 2}),),
    topic="kites",
    source="p.jsonl:3",
)
RESPONSE = Response(
    "r1", PROMPT.id, 2, "student", "abc", "text\x00 with \ud83e".encode("utf-8", "replace").decode(), (5, 6, 2), "stop",
    ("repeated",), {"t": -1.5, "0": -2.25},
)  # fmt: skip
JUDGMENT = Judgment(
    PROMPT.id, ("r1", "r2"), "rules", "unusable", "id2_score missing", (6.0, None), ((None, 0.25), (0.75, None)),
    {"good": (1.0, None)}, (1, 0), '{"id1_score": 6}', "m", "m-2024", Usage(10, 3, 0.5, 2),
)  # fmt: skip
PAIR = Pair("p1", PROMPT.id, "r1", "r2", "S>T", 0.8, 0.1, 6.0, None, 3, 0.75, None)


@pytest.mark.parametrize("kind", tables.SCHEMAS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_record_has_a_column(kind: type) -> None:
    assert [f.name for f in dataclasses.fields(kind)] == tables.SCHEMAS[kind].names


@pytest.mark.parametrize(
    "record", [PROMPT, RESPONSE, JUDGMENT, PAIR, LogProb("r1", "0", -3.5)], ids=lambda r: type(r).__name__
)
def test_records_survive_parquet(record: object, tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(tables.encode(type(record), [record, record, record], row_group=2))  # type: ignore[type-var]
    assert tables.read(type(record), file) == [record] * 3  # type: ignore[type-var]
    assert tables.read(type(record), file, 1) == [record]  # type: ignore[type-var]
    assert tables.shape(file) == (3, 2)


def test_no_records_is_a_readable_file(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(tables.encode(Pair, []))
    assert tables.read(Pair, file) == []


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(tables.encode(Pair, [PAIR])[:-9])
    for call in (lambda: tables.read(Pair, bad), lambda: tables.shape(bad)):
        with pytest.raises(StoreError, match=r"bad\.parquet: damaged"):
            call()
    with pytest.raises(StoreError, match=r"none\.parquet: missing"):
        tables.read(Pair, tmp_path / "none.parquet")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(StoreError, match=r"bad\.json: damaged"):
        read_json(tmp_path / "bad.json")


def test_of_many_writers_one_creates_the_unit(tmp_path: Path) -> None:
    target, won = tmp_path / "unit", []
    barrier = threading.Barrier(8)

    def race(n: int) -> None:
        barrier.wait()
        if create_once(target, str(n).encode() * 1000):
            won.append(n)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert target.read_bytes() == str(won[0]).encode() * 1000
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_writing_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.json"
    write_json(file, {"a": 1})
    write_json(file, {"a": 2})
    assert read_json(file) == {"a": 2}
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"a": float("nan")})
    (file.parent / ".b.123.partial").write_text("half")
    remove_partials(tmp_path)
    assert [f.name for f in file.parent.iterdir()] == ["a.json"]
    write_atomic(file, "text")
    assert file.read_text() == "text"


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nashtune.store.files import exclusive\n"
        f"with exclusive(Path({str(tmp_path / 'lock')!r})): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunLockedError, match=f"process {holder.pid}"), exclusive(tmp_path / "lock"):
        pass
    os.kill(holder.pid, 9)
    holder.wait()
    with exclusive(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())
