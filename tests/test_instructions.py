import pytest

from nashtune.errors import PromptError
from nashtune.judging.instructions import KINDS, check, validate_constraint
from nashtune.judging.text_units import bullets, paragraphs, sentences, words
from nashtune.records import Constraint

THREE_BULLETS = "- red\n- green\n- blue"
TWO_PARAGRAPHS = "First part.\n\nSecond part."
GERMAN = "Das ist ein sehr schöner Tag und wir gehen heute in die Stadt."
ENGLISH = "This is a very nice day and we are going to the city today."

# kind, arguments, texts that satisfy it, texts that do not
CASES = [
    ("words_at_least", {"n": 3}, ["one two three", "a b c d"], ["one two", "- -- !"]),
    ("words_at_most", {"n": 3}, ["one", "one, two; three"], ["one two three four", "it's not so"]),
    ("words_between", {"at_least": 2, "at_most": 3}, ["one two", "one two three"], ["one", "one two three four"]),
    ("sentences_exactly", {"n": 2}, ["One. Two!", "is it so? it is."], ["One.", "One. Two. Three."]),
    ("sentences_at_least", {"n": 2}, ["One. Two.", "A b. C d. E f."], ["Only one.", "pi is 3.14 and no more"]),
    ("sentences_at_most", {"n": 1}, ["Only one.", "Dr. Lee saw 3.5 owls."], ["One. Two.", "One\n\nTwo"]),
    ("paragraphs_exactly", {"n": 2}, [TWO_PARAGRAPHS, "a\n \nb\n"], ["one", "a\n\nb\n\nc"]),
    (
        "paragraphs_exactly",
        {"n": 2, "separator": "***"},
        ["a *** b", "a\n***\nb\n***"],
        [TWO_PARAGRAPHS, "a *** *** b"],
    ),
    (
        "paragraph_first_word",
        {"n": 2, "nth": 2, "word": "second"},
        [TWO_PARAGRAPHS, "a\n\n*Second* b"],
        ["Second a\n\nb", "a\n\nsecond b\n\nc"],
    ),
    ("bullets_exactly", {"n": 3}, [THREE_BULLETS, "Colours:\n* a\n* b\n- c"], ["- a\n- b", "- a\n- b\n- c\n- d"]),
    (
        "bullets_exactly",
        {"n": 3, "marker": "-", "only": True},
        [THREE_BULLETS, "\n- a\n\n- b\n- c\n"],
        ["Colours:\n" + THREE_BULLETS, "* a\n* b\n* c"],
    ),
    ("numbered_list", {"n": 2}, ["1. a\n2. b", "Two:\n1) a\n2) b\nEnd"], ["1. a\n2. b\n3. c", "1. a\n3. b"]),
    ("numbered_list", {"n": 2, "only": True}, ["1. a\n2. b", "1. a\n\n2. b\n"], ["Two:\n1. a\n2. b", "1. a\n1. b"]),
    (
        "sections",
        {"n": 2, "marker": "PART"},
        ["PART 1\na\nPART 2\nb", "PART 1 PART 2 PART 3"],
        ["PART 1", "Part 1, Part 2"],
    ),
    ("highlighted", {"n": 2}, ["*a* and *b*", "**a** and *b c*"], ["*a*", "* * and **"]),
    ("title_in_double_angles", {}, ["<<Owls>>\nText", "a << b >> c"], ["<Owls>", "<< >>"]),
    ("placeholders", {"n": 2}, ["Dear [name] at [place]", "[a][b][c]"], ["Dear [name]", "(name) (place)"]),
    ("postscript", {}, ["Bye.\nP.S. more", "bye p. s. more"], ["Bye.", "PS more"]),
    ("postscript", {"marker": "P.P.S"}, ["P.P.S more", "bye p. p. s"], ["P.S. more", "bye"]),
    ("two_answers", {}, ["yes\n******\nno", "a ****** b ******"], ["yes ****** yes", "a ****** b ****** c"]),
    ("json", {}, ['{"a": 1}', "```json\n[1, 2]\n```"], ["{a: 1}", 'Here: {"a": 1}']),
    ("json", {"keys": ["a", "b"]}, ['{"a": 1, "b": 2}', '{"b": 0, "a": 0, "c": 0}'], ['{"a": 1}', '["a", "b"]']),
    ("lowercase", {}, ["all small, 3 of them", "é"], ["One", "123"]),
    ("uppercase", {}, ["ALL BIG, 3 OF THEM", "É"], ["ALL BUt one", "123"]),
    ("capital_words", {"at_least": 2}, ["NASA and ESA", "A B C"], ["NASA and Esa", "none"]),
    ("capital_words", {"at_most": 1}, ["NASA only", "none"], ["NASA and ESA", "A B C"]),
    ("letter_frequency", {"letter": "e", "at_least": 2}, ["Eerie", "these"], ["the", "none at all a"]),
    ("letter_frequency", {"letter": "#", "at_most": 1}, ["no hash", "# one"], ["##", "# and #"]),
    ("no_commas", {}, ["none here", "semi; colon: stop."], ["one, here", ","]),
    ("no_digits", {}, ["none", "four"], ["4", "x2"]),
    ("quoted", {}, ['"All of it."', ' "a" and "b" '], ['"open', '"']),
    ("include_keywords", {"keywords": ["owl", "night"]}, ["Owls hunt at NIGHT", "night owl"], ["owl", "nigh owl"]),
    ("exclude_keywords", {"keywords": ["the", "a b"]}, ["then other", "A c b"], ["see The owl", "x a b x"]),
    ("keyword_frequency", {"keyword": "owl", "at_least": 2}, ["owl owls", "Owl, OWL!"], ["owl", "bird"]),
    ("keyword_frequency", {"keyword": "owl", "at_most": 1}, ["owl", "bird"], ["owl owls", "owl owl owl"]),
    (
        "starts_with",
        {"phrase": "Here it is:"},
        ["Here it is: x", "  Here it is:"],
        ["here it is: x", "So: Here it is:"],
    ),
    ("starts_with", {"phrase": "Say A", "ignore_case": True}, ["say a. b", "SAY A"], ["b. say a", "say b"]),
    ("ends_with", {"phrase": "DONE"}, ["all DONE", '"It is DONE"'], ["DONE it", "DONE."]),
    ("ends_with", {"phrase": "DONE", "allow_stop": True}, ["all DONE.", "DONE!"], ["Done.", "DONE?"]),
    ("ends_with", {"phrase": "Bye!", "ignore_case": True}, ["ok. bye!", "BYE! "], ["bye", "Bye! x"]),
    ("ends_with_question", {}, ["Why?", '"Is it?"\n'], ["Why? Because.", "why"]),
    ("one_of", {"options": ["Yes.", "No."]}, ["I say: Yes.", "No."], ["yes", "Maybe."]),
    ("language", {"code": "de"}, [GERMAN, GERMAN.upper().lower()], [ENGLISH, "12345"]),
    ("exact_answer", {"answer": "1,200"}, ["So 3 * 400 = 1200.", "The answer is $1,200"], ["120", "1200 or 1300"]),
    ("exact_answer", {"answer": "the Red Owl"}, ["red owl!", "I think. Answer: a red owl"], ["red", "not red owl"]),
]


@pytest.mark.parametrize(
    ("kind", "args", "passing", "failing"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_passing_and_failing_texts(kind, args, passing, failing):
    constraint = Constraint(kind, args)
    validate_constraint(constraint)
    assert [t for t in passing if not check(constraint, t)] == []
    assert [t for t in failing if check(constraint, t)] == []
    assert not check(constraint, " \n")


def test_every_kind_has_cases_and_a_summary():
    assert {case[0] for case in CASES} == set(KINDS)
    assert len(KINDS) >= 24
    assert all(kind.summary.endswith((".", ")")) for kind in KINDS.values())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_unknown_argument_is_refused_by_every_kind(kind):
    good = next(args for name, args, *_ in CASES if name == kind)
    with pytest.raises(PromptError, match=f"{kind}.*surprise.*accepted: "):
        validate_constraint(Constraint(kind, {**good, "surprise": 1}))


@pytest.mark.parametrize("kind", sorted(k for k in KINDS if KINDS[k].schema.model_json_schema().get("required")))
def test_missing_argument_is_refused(kind):
    with pytest.raises(PromptError, match=f"{kind}.*Field required"):
        validate_constraint(Constraint(kind, {}))


@pytest.mark.parametrize(
    ("kind", "args", "message"),
    [
        ("words_at_least", {"n": 0}, r"n: .*greater than or equal to 1.*accepted: n \(integer, minimum 1\)"),
        ("words_at_least", {"n": True}, "valid integer"),
        ("words_at_least", {"n": "3"}, "valid integer"),
        ("words_between", {"at_least": 5, "at_most": 2}, "at_least is above at_most"),
        ("keyword_frequency", {"keyword": "owl"}, "no bound is given"),
        ("letter_frequency", {"letter": "ab", "at_least": 1}, "at most 1 character"),
        ("include_keywords", {"keywords": []}, "at least 1 item"),
        ("include_keywords", {"keywords": "owl"}, "valid list"),
        ("bullets_exactly", {"n": 3, "marker": "+"}, "'any', '-' or '\\*'"),
        ("starts_with", {"phrase": ""}, "at least 1 character"),
        ("language", {"code": "xx"}, "no such language; known: af, ar"),
    ],
)
def test_bad_arguments_name_received_and_accepted(kind, args, message):
    with pytest.raises(PromptError, match=message) as caught:
        validate_constraint(Constraint(kind, args))
    assert repr(args) in str(caught.value)
    assert KINDS[kind].accepted in str(caught.value)


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(PromptError, match=r"'rhyme' is unknown; accepted: bullets_exactly, .*words_between"):
        check(Constraint("rhyme"), "text")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mr. J. Lee came. He left.", ["Mr. J. Lee came.", "He left."]),
        ('He said "No." Then: silence...', ['He said "No."', "Then: silence..."]),
        ("Plan B. It works", ["Plan B. It works"]),
        ("It was I. Then he", ["It was I.", "Then he"]),
        ("Two:\n1. an owl\n2. a bat", ["Two:", "an owl", "a bat"]),
        ("Really?! Yes… ok ...", ["Really?!", "Yes…", "ok ..."]),
        ("wrapped\nline. e.g. this", ["wrapped\nline.", "e.g. this"]),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_words_bullets_and_paragraphs():
    assert words("Don't stop_now, 2 é!") == ["Don", "t", "stop_now", "2", "é"]
    assert bullets("- a\n  * b\n**c**\n-d\n+ e") == ["- a", "  * b", "-d"]
    assert bullets("- a\n* b", "*") == ["* b"]
    assert paragraphs("\n\na\nb\n\n \nc\n\n") == ["a\nb", "c"]
    assert paragraphs("*** a *** *** b ***", "***") == ["a", "", "b"]
