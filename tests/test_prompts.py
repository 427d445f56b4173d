import csv
import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nashtune.errors import PromptError
from nashtune.judging.instructions import validate_constraint
from nashtune.prompt_dedupe import near_duplicates
from nashtune.prompt_sets import PROMPT_SETS
from nashtune.prompts import load_prompts
from nashtune.recipe import PromptsSection
from nashtune.records import Constraint, Message

ROWS = [{"prompt": f"Question number {i}, about {w}?", "gold": f"answer {i}"} for i, w in enumerate("abcdefghij")]
TEXTS = sorted(row["prompt"] for row in ROWS)


def section(source, **settings_):
    settings_ = {"validation": {"count": 2}, **settings_}
    return PromptsSection.model_validate({"source": str(source), **settings_})


def load(source, iterations=2, seed=0, count_tokens=None, **settings_):
    return load_prompts(section(source, **settings_), iterations, seed, count_tokens)


def everything(split):
    return [p for part in (*split.parts, split.validation) for p in part]


def write_jsonl(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


def write_json(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


WRITERS = {"jsonl": write_jsonl, "json": write_json, "csv": write_csv, "parquet": write_parquet}

# -------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("kind", WRITERS)
def test_formats_round_trip(tmp_path, kind):
    rows = [{**row, "topic": "number", "constraints": '[{"kind": "words_at_most", "args": {"n": 9}}]'} for row in ROWS]
    split = load(WRITERS[kind](tmp_path / f"p.{kind}", rows), teacher_column="gold")
    found = everything(split)
    assert sorted((p.text, p.teacher) for p in found) == sorted((r["prompt"], r["gold"]) for r in ROWS)
    assert all((p.topic, p.constraints) == ("number", (Constraint("words_at_most", {"n": 9}),)) for p in found)
    assert (split.report.read, split.report.parts, split.report.validation) == (10, (4, 4), 2)


def test_text_file_and_folder_of_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(("\ufeff" + "\r\n\n".join(TEXTS[:5])).encode())
    (tmp_path / "deep").mkdir()
    write_jsonl(tmp_path / "deep" / "b.jsonl", [{"prompt": t} for t in TEXTS[5:]])
    (tmp_path / ".hidden.txt").write_text("no prompt")
    (tmp_path / "README.md").write_text("no prompt")
    split = load(tmp_path)
    assert sorted(p.text for p in everything(split)) == TEXTS
    assert {p.source.rpartition("/")[2] for p in everything(split)} >= {"a.txt:1", "a.txt:3", "b.jsonl:5"}


def test_saved_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": data.select(range(4)), "test": data}).save_to_disk(tmp_path / "split")
    assert sorted(p.text for p in everything(load(tmp_path / "plain"))) == TEXTS
    assert sorted(p.text for p in everything(load(tmp_path / "split", split="test"))) == TEXTS
    with pytest.raises(PromptError, match=r"prompts\.split is 'dev'; accepted: train, test"):
        load(tmp_path / "split", split="dev")


def test_chat_messages_system_prompt_and_nested_constraints(tmp_path):
    chat = [{"role": "user", "content": "Cafe\u0301?"}, {"role": "assistant", "content": "Yes."}]
    rows = [
        {
            "messages": [*chat, {"role": "user", "content": f"And {i}?"}],
            "constraints": [{"kind": "quoted", "args": None}],
        }
        for i in range(3)
    ]
    rows.append(
        {"messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "x"}], "constraints": []}
    )
    for name, write in (("jsonl", write_jsonl), ("parquet", write_parquet)):
        split = load(write(tmp_path / f"p.{name}", rows), iterations=1, system="Be brief.")
        by_text = {p.text: p for p in everything(split)}
        assert by_text["And 0?"].messages == (
            Message("system", "Be brief."),
            Message("user", "Caf\u00e9?"),
            Message("assistant", "Yes."),
            Message("user", "And 0?"),
        )
        assert by_text["And 1?"].constraints == (Constraint("quoted", {}),)
        assert [m.content for m in by_text["x"].messages] == ["Own.", "x"]


def test_prompt_column_is_the_first_known_one_or_the_named_one(tmp_path):
    path = write_parquet(
        tmp_path / "p.parquet", [{"text": f"t{i}", "question": f"q{i}", "other": f"o{i}"} for i in range(6)]
    )
    assert {p.text[0] for p in everything(load(path))} == {"q"}
    assert {p.text[0] for p in everything(load(path, prompt_column="other"))} == {"o"}
    with pytest.raises(PromptError, match="has the columns 'text', 'question', 'other'; accepted: nothing"):
        load(path, prompt_column="nothing")


# ------------------------------------------------------------------------------------------------------------- bad input

BAD = [
    ('{"prompt": "x"', "not valid JSON"),
    ('["x"]', "found list"),
    ({"answer": "x"}, "no prompt in its columns ('answer'); accepted: messages, prompt"),
    ({"prompt": "  "}, "column 'prompt': empty"),
    ({"prompt": 3}, "column 'prompt': int '3'; accepted: a string or a list"),
    ({"prompt": "\ud800"}, "lone surrogate"),
    ({"messages": []}, "no messages"),
    ({"messages": [{"role": "human", "content": "x"}]}, "role 'human'; accepted: system, user, assistant"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "the last message is the assistant's"),
    ({"messages": [{"content": "x"}]}, "message 1 in column 'messages'"),
    ({"messages": [{"role": "user", "content": None}]}, "missing"),
    ({"prompt": "x", "constraints": [{"kind": "rhyme"}]}, "'rhyme' is unknown; accepted: "),
    ({"prompt": "x", "constraints": [{"kind": "words_at_most", "args": {"n": 0}}]}, "accepted: n (integer, minimum 1)"),
    ({"prompt": "x", "constraints": "{"}, "column 'constraints': not valid JSON"),
    ({"prompt": "x", "constraints": {"kind": "quoted"}}, "accepted: a list of {kind, args}"),
    ({"prompt": "x", "topic": 3}, "column 'topic': int"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_row_strict_or_counted(tmp_path, row, reason):
    path = write_jsonl(tmp_path / "p.jsonl", [*ROWS[:3], row, *ROWS[3:], row])
    with pytest.raises(PromptError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:4: ")
    assert reason in str(caught.value)
    report = load(path, on_bad_row="skip").report
    assert (report.read, report.bad, sum(report.parts)) == (12, 2, 8)
    assert [line.split(": ")[0] for line in report.bad_rows] == [f"{path}:4", f"{path}:12"]


def test_missing_teacher_and_bad_encoding(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [*ROWS, {"prompt": "x"}])
    with pytest.raises(PromptError, match=r"p\.jsonl:11: teacher column 'gold': missing"):
        load(path, teacher_column="gold")
    assert load(path).report.bad == 0
    path.write_bytes(path.read_bytes() + b'{"prompt": "\xff"}\n')
    assert load(path, on_bad_row="skip").report.bad_rows == (f"{path}:12: not UTF-8 text",)


def test_csv_rows_are_counted_by_line(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('prompt,gold\n"two\nlines",b\n\nonly one cell\nx,y\nu,v\nw,z\n', encoding="utf-8")
    with pytest.raises(PromptError, match=r"p\.csv:5: 1 cells; accepted: 2"):
        load(path)
    split = load(path, on_bad_row="skip", validation={"count": 1}, iterations=1)
    assert sorted(p.source.rpartition(":")[2] for p in everything(split)) == ["2", "6", "7", "8"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b"{}", "found dict at the top"),
        ("p.json", b"[", "not valid JSON"),
        ("p.parquet", b"PAR1 not", "damaged or not a parquet file|cannot be read"),
        ("p.csv", b"a,b\n1,2\n", "has the columns 'a', 'b'; accepted: messages, prompt"),
        ("p.xml", b"<a/>", r"cannot read files of kind '\.xml'; accepted: a \.jsonl"),
    ],
)
def test_unusable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message):
        load(tmp_path / name, on_bad_row="skip")


def test_missing_and_empty_sources(tmp_path):
    with pytest.raises(PromptError, match=r"no such file or folder; accepted: a \.jsonl"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(PromptError, match="no prompt files in this folder"):
        load(tmp_path)
    with pytest.raises(PromptError, match="accepted: nashtune:constraints"):
        load("nashtune:nothing")
    with pytest.raises(PromptError, match=r"prompts\.prompt_column is 'x'"):
        load("nashtune:constraints", prompt_column="x")


# -------------------------------------------------------------------------------------------------- duplicates and parts


def test_exact_and_near_duplicates_by_hand(tmp_path):
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    texts = [long, f" {long.replace(' ', '  ')} ", f"{long} fifteen", "short one", "Short One", "other", "more", "last"]
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": t} for t in texts])
    # 10 of 11 five-word windows in common: 0.909
    for near, dropped in ((0.9, 2), (0.91, 1), (None, 0)):
        report = load(path, dedupe={"near": near}).report
        assert (report.exact_duplicates, report.near_duplicates) == (1, dropped)
    report = load(path, dedupe={"exact": False, "near": None}).report
    assert (report.exact_duplicates, sum(report.parts) + report.validation + report.overlap) == (0, 8)
    with pytest.raises(PromptError, match=r"prompts\.dedupe\.near is 0"):
        load(path, dedupe={"near": 0})


def test_templates_are_not_collapsed():
    texts = [f"Tell me something about {t}. Answer in all lowercase letters." for t in ("tea", "the moon", "owls")]
    assert near_duplicates(texts, 0.8) == [False] * 3


def plain_near_duplicates(texts, threshold):
    kept, found = [], []
    for text in texts:
        w = text.casefold().split()
        shingles = {tuple(w[i : i + 5]) for i in range(len(w) - 4)} or {" ".join(w)}
        found.append(any(len(shingles & k) / len(shingles | k) >= threshold - 1e-12 for k in kept))
        if not found[-1]:
            kept.append(shingles)
    return found


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=14).map(" ".join), max_size=25),
    st.sampled_from([0.1, 0.3, 0.5, 0.75, 0.9, 1.0]),
)
def test_near_duplicates_equal_the_plain_definition(texts, threshold):
    assert near_duplicates(texts, threshold) == plain_near_duplicates(texts, threshold)


def test_near_duplicates_of_many_templated_prompts():
    rng = random.Random(0)
    names = [f"name{i}" for i in range(5000)]
    template = "Below is a task that somebody has, so write an answer to it that helps them: describe {} {} {} {} {}"
    texts = [template.format(*rng.sample(names, 5)) for _ in range(50_000)]
    repeated = [" ".join([*t.split()[:-1], "changed"]) for t in texts[:100]]  # 1 of 16 windows differs: 15/17 = 0.88
    found = near_duplicates(texts + repeated, 0.88)
    assert not any(found[:50_000])
    assert all(found[50_000:])


def test_order_of_rows_decides_nothing_and_seed_does(tmp_path):
    rows = [
        {"prompt": f"{a} {b}", "gold": str(i)} for i, (a, b) in enumerate(zip("abcdeabcde", "xyzxyxyzxy", strict=True))
    ]
    rows += [{"prompt": f"{r['prompt']} ", "gold": "twin"} for r in rows[:5]]
    one = load(write_jsonl(tmp_path / "a.jsonl", rows), teacher_column="gold", iterations=1)
    two = load(write_jsonl(tmp_path / "b.jsonl", rows[::-1]), teacher_column="gold", iterations=1)

    def shape(split):
        return [[(p.id, p.teacher) for p in part] for part in (*split.parts, split.validation)]

    assert shape(one) == shape(two)
    assert shape(one) != shape(load(tmp_path / "a.jsonl", teacher_column="gold", iterations=1, seed=1))


def test_parts_are_disjoint_and_leave_no_remainder(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"p{i}"} for i in range(25)])
    split = load(path, iterations=4)
    assert sorted(split.report.parts) == [5, 6, 6, 6]
    assert len({p.id for p in everything(split)}) == 25
    fixed = load(path, iterations=3, per_iteration=7)
    assert (fixed.report.parts, fixed.report.unused) == ((7, 7, 7), 2)
    assert load(path, iterations=2, per_iteration=7).parts == fixed.parts[:2]


def test_too_few_prompts(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [*ROWS, ROWS[0], "bad"])
    with pytest.raises(PromptError, match=r"per_iteration 5 need 10 training prompts but 8 are there .*bad row: .*:12"):
        load(path, per_iteration=5, on_bad_row="skip")
    with pytest.raises(
        PromptError, match=r"count is 11 but 10 prompts are there \(rows read 12, bad 1, exact dup.* 1,"
    ):
        load(path, validation={"count": 11}, on_bad_row="skip")


def test_too_long_prompts_are_left_out(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [*ROWS, {"prompt": "word " * 20}])
    split = load(path, count_tokens=lambda messages: len(messages[-1].content.split()), max_prompt_tokens=19)
    assert (split.report.too_long, len(everything(split))) == (1, 10)


def test_validation_source_is_kept_out_of_training(tmp_path):
    long = "a b c d e f g h i j k l m n o p q r s t"
    train = write_jsonl(tmp_path / "t.jsonl", [*ROWS, {"prompt": long + " u"}])
    held = write_jsonl(tmp_path / "v.jsonl", [{"prompt": "Question  number 0, about a?"}, {"prompt": long}])
    split = load(train, validation={"count": 2, "source": str(held)})
    assert {p.source.rpartition("/")[2] for p in split.validation} == {"v.jsonl:1", "v.jsonl:2"}
    assert (split.report.overlap, split.report.near_duplicates, sum(split.report.parts)) == (1, 1, 9)


# ------------------------------------------------------------------------------------------------------- the built-in set


@pytest.mark.parametrize("seed", [0, 1])
def test_built_in_set(seed):
    items = list(PROMPT_SETS["constraints"](seed))
    prompts = [item.prompt for item in items]
    assert len({p.id for p in prompts}) == len(prompts) >= 900
    for p in prompts:
        assert p.constraints
        for constraint in p.constraints:
            validate_constraint(constraint)
        assert p.topic is not None
        assert p.topic in p.text
    topics = {held: {item.prompt.topic for item in items if item.held_out is held} for held in (True, False)}
    assert not topics[True] & topics[False]
    assert len(topics[True]) >= 12
    kinds = Counter(str(p.constraints) for p in prompts)
    assert len(kinds) >= 12
    assert len(set(kinds.values())) == 1
    assert not any(near_duplicates([p.text for p in prompts], 0.9))


def test_built_in_set_splits_by_topic():
    split = load("nashtune:constraints", iterations=3, validation={"count": 96}, system="Be kind.")
    assert split.report.parts == (304, 304, 304)
    trained = {p.topic for part in split.parts for p in part}
    assert not trained & {p.topic for p in split.validation}
    assert all(p.messages[0] == Message("system", "Be kind.") and p.constraints for p in everything(split))
    other = load("nashtune:constraints", iterations=3, validation={"count": 96}, seed=1)
    assert {p.topic for p in other.validation} != {p.topic for p in split.validation}
