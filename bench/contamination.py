"""How fast are training prompts compared with evaluations?

    python bench/contamination.py [--prompts 100000] [--json]

Random prompts of 5 to 120 words against evaluation prompts of as many, as large together as AlpacaEval, MT-Bench, Arena-Hard,
IFEval and IFBench are; one prompt in a hundred holds an evaluation's ten words, and has to be found.
"""

from __future__ import annotations

import random

from bars import arguments, finish
from measure import Meter

from nashtune.prompt_overlap import OverlapIndex

EVALUATIONS = {"alpaca_eval": 805, "mt_bench": 160, "arena_hard": 1250, "ifeval": 541, "ifbench": 300}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=100_000)
    options = parser.parse_args()
    draw = random.Random(0)
    vocabulary = [f"word{n}" for n in range(20_000)]

    def text() -> str:
        return " ".join(draw.choices(vocabulary, k=draw.randint(5, 120)))

    sets = {name: [text() for _ in range(count)] for name, count in EVALUATIONS.items()}
    long = [words for texts in sets.values() for each in texts if len(words := each.split()) >= 10]
    planted = [" ".join(draw.choice(long)[:10]) if n % 100 == 0 else "" for n in range(options.prompts)]
    prompts = [f"{text()} {words}" for words in planted]
    with Meter() as meter:
        index = OverlapIndex(sets, 10)
        found = [index.overlap(prompt) is not None for prompt in prompts]
    result = {"prompts": options.prompts, "found": sum(found), **meter.figures()}
    missed = sum(bool(words) and not hit for words, hit in zip(planted, found, strict=True))
    bars = {
        "CPU seconds for 100,000 prompts": (meter.cpu * 100_000 / options.prompts, lambda x: x < 60, "under 60"),
        "planted overlaps missed": (missed, lambda x: x == 0, "0"),
    }
    finish(result, bars, options.json)


if __name__ == "__main__":
    main()
