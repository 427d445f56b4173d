"""Do our checks of verifiable instructions decide as the published ones do?

    python bench/ifeval_agreement.py [--cases 2000] [--ifbench CHECKOUT] [--json] [--golden FILE]

Answers made to follow, to miss and to miss by little each of IFEval's 25 types (seeded) are checked strictly and loosely by
lm-evaluation-harness's implementation and by ours; the bar is no difference. With a checkout of allenai/IFBench the same for its
58 types; texts on which the published code stops with an error are listed and not counted. Skips where lm-eval or nltk's data
are not installed (NLTK_DATA). nltk's tagger for one of IFBench's types is replaced, where its data are absent, by the same
small table for both sides, and the result says so. --golden keeps the published verdicts by type, for tests without lm-eval.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bars import Row, arguments, finish
from ifbench_cases import IFBENCH_MAKERS
from instructed_cases import IFEVAL_MAKERS, Case, cases

from nashtune.errors import EvaluationError
from nashtune.suites.ifbench.types import NEW
from nashtune.suites.ifeval import resources
from nashtune.suites.ifeval.checkers import IFEVAL
from nashtune.suites.ifeval.data import InstructedPrompt, Instruction
from nashtune.suites.ifeval.scores import check_answer
from nashtune.suites.ifeval.types import Types

Verdicts = tuple[bool, bool]
TAGS = {"run": "VB", "write": "VB", "is": "VBZ", "stop": "VB", "bring": "VB", "running": "VBG"}


def ours(case: Case, types: Types) -> Verdicts:
    """Strict and loose."""
    kind = types[case.type]
    prompt = InstructedPrompt("1", "?", (Instruction(case.type, kind, kind.arguments(case.kwargs)),))
    found = check_answer(prompt, case.text)
    return found.strict[0], found.loose[0]


def lm_eval_reference() -> Callable[[Case], Verdicts]:
    """lm-evaluation-harness's strict and loose test of one case. Raises ImportError where it is not installed."""
    utils = importlib.import_module("lm_eval.tasks.ifeval.utils")

    def check(case: Case) -> Verdicts:
        example = utils.InputExample(1, [case.type], "?", [dict(case.kwargs)])
        return (
            utils.test_instruction_following_strict(example, case.text).follow_all_instructions,
            utils.test_instruction_following_loose(example, case.text).follow_all_instructions,
        )

    return check


def ifbench_reference(checkout: Path) -> Callable[[Case], Verdicts]:
    """The published code of a checkout of allenai/IFBench."""
    sys.path.insert(0, str(checkout))
    lib = importlib.import_module("evaluation_lib")

    def check(case: Case) -> Verdicts:
        example = lib.InputExample(1, [case.type], "?", [dict(case.kwargs)])
        answers = {"?": case.text}
        return (
            lib.test_instruction_following_strict(example, answers).follow_all_instructions,
            lib.test_instruction_following_loose(example, answers).follow_all_instructions,
        )

    return check


def agreement(name: str, made: list[Case], types: Types, reference: Callable[[Case], Verdicts], quiet: bool) -> Row:
    """Counts by type of agreement and of what was followed, and the cases that differ."""
    differ, stopped, followed, loose = [], [], Counter[str](), Counter[str]()
    for case in made:
        mine = ours(case, types)
        followed[case.type] += mine[0]
        loose[case.type] += mine[1]
        try:
            published = reference(case)
        except Exception as error:  # noqa: BLE001 - the published code stops on some texts; each is listed
            stopped.append({"type": case.type, "text": case.text, "ours": mine, "error": repr(error)})
            continue
        if mine != published:
            differ.append(
                {"type": case.type, "kwargs": case.kwargs, "text": case.text, "ours": mine, "published": published}
            )
    if not quiet:
        count = Counter(case.type for case in made)
        print(f"{name}: {len(made) - len(differ) - len(stopped)} of {len(made)} agree, strictly and loosely")
        for kind, n in count.items():
            print(f"  {kind:45} {n:4} cases, followed {followed[kind]:3} strictly, {loose[kind]:3} loosely")
        for case in differ + stopped:
            print(f"  {'published code stops, we decide' if 'error' in case else 'differs'}: {case}")
    return {
        "cases": len(made),
        "agree": len(made) - len(differ) - len(stopped),
        "followed": sum(followed.values()),
        "one-sided types": [t for t in types if not 0 < followed[t] < len(made) / len(types)],
        "differ": differ,
        "published code stops": stopped,
    }


def published_verdicts(made: list[Case], reference: Callable[[Case], Verdicts]) -> dict[str, str]:
    """By type, a digit a case: 0 not followed, 2 loosely, 3 strictly too, x where the published code stops."""
    digits: dict[str, str] = {}
    for case in made:
        try:
            strict, loose = reference(case)
        except Exception:  # noqa: BLE001
            digits[case.type] = digits.get(case.type, "") + "x"
        else:
            digits[case.type] = digits.get(case.type, "") + str(strict + 2 * loose)
    return digits


def stand_in_tagger() -> bool:
    """Where nltk has no tagger data: a small table for both sides. Whether it was needed."""
    try:
        resources.require(["averaged_perceptron_tagger_eng"])
    except EvaluationError:
        import nltk

        def tag(tokens: list[str], *_: Any, **__: Any) -> list[tuple[str, str]]:
            return [(token, TAGS.get(token.lower(), "NN")) for token in tokens]

        nltk.pos_tag = tag
        resources.part_of_speech = lambda words: [t for _, t in tag(words)]
        importlib.import_module("nashtune.suites.ifbench.word_rules").part_of_speech = resources.part_of_speech
        return True
    return False


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--golden", type=Path, help="where to keep the published verdicts")
    parser.add_argument("--ifbench", type=Path, help="a checkout of allenai/IFBench")
    options = parser.parse_args()
    logging.disable(logging.ERROR)  # the published code logs each text without letters
    try:
        resources.require(["punkt_tab"])
        reference = lm_eval_reference()
    except (ImportError, EvaluationError) as error:
        print(f"skipped: {error}")
        return
    import langdetect

    langdetect.DetectorFactory.seed = 0  # as ours: unseeded, the published code's guesses change from call to call
    made = list(cases(IFEVAL_MAKERS, options.cases, options.seed))
    result: Row = {"ifeval": agreement("IFEval", made, IFEVAL, reference, options.json)}
    golden = {"ifeval": published_verdicts(made, reference)} if options.golden else {}
    if options.ifbench:
        stand_in = stand_in_tagger()
        made = list(cases(IFBENCH_MAKERS, options.cases, options.seed))
        reference = ifbench_reference(options.ifbench)
        result["ifbench"] = agreement("IFBench", made, NEW, reference, options.json)
        if options.golden:
            golden["ifbench"] = published_verdicts(made, reference)
            if stand_in:
                del golden["ifbench"]["words:start_verb"]
        result["ifbench"]["tagger replaced for both"] = stand_in
    if options.golden:
        options.golden.write_text(json.dumps({"cases": options.cases, "seed": options.seed, **golden}, indent=1) + "\n")
    bars = {
        f"{name}: share of the cases that the published code decides": (
            row["agree"] / (row["cases"] - len(row["published code stops"])),
            lambda x: x == 1,
            "1",
        )
        for name, row in result.items()
    }
    finish(result, bars, options.json)


if __name__ == "__main__":
    main()
