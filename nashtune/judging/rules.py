"""The rules oracle: verifiable instructions decide, and a quality guard keeps the oracle from being gamed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nashtune import recipe
from nashtune.errors import OracleError
from nashtune.judging.instructions import check
from nashtune.judging.text_units import words
from nashtune.records import Judgment, Prompt, Response
from nashtune.seeds import canonical_json

# An answer that talks about its own instruction instead of following it. Words that also belong to ordinary subjects
# ("capital", "paper", "period") count only in the phrases that instructions use.
_META = re.compile(
    r"""\b(?:
        (?:lower|upper)[\s-]?case | (?:all|in)\s+(?:small\s+|lower\s+)?caps | (?:capital|small|block)\s+letters?
      | (?:all|in)\s+capitals? | capitali[sz]ed
      | bullet(?:ed)?[\s-]+(?:points?|lists?) | numbered\s+lists? | list\s+of\s+(?:two|three|\d+)\s+items?
      | quotation\s+marks? | (?:double|single)[\s-]+quot(?:e|es|ed) | quote\s+marks?
      | commas? | question\s+marks? | exclamation\s+marks? | punctuation
      | sentences? | at\s+most\s+(?:\d+|fifteen)\s+words? | word\s+(?:count|limit) | \d+\s+words\s+or\s+(?:less|fewer)
      | (?:the|a)\s+(?:words?|phrases?)(?=\s*["'“‘:]) | using\s+the\s+words?
      | (?:the|this|my|your|an?|following|whole|short)\s+(?:answer|response|reply)\b | answer\s+(?:in|with|using)
      | (?:the|this|your|given)\s+(?:prompt|instructions?|question|query)
      | as\s+(?:you\s+)?(?:requested|instructed|asked) | you\s+(?:asked|requested|want(?:ed)?\s+me)
      | rewritten | rephrased? | revised\s+version | as\s+an?\s+(?:ai|language\s+model)
      | tell\s+me\s+(?:something|about) | (?:i\s+would|i'd)\s+(?:like|love|be\s+happy)\s+to\s+(?:learn|help|know|share)
      | (?:here\s+is|here's|here\s+are|below\s+is)\s+(?:an?|the|some|my|your|one|two|three)\s+
        (?:\w+\s+){0,2}?(?:explanation|description|summary|list|paragraph|text|version|sentence)s?
    )(?!\w)""",
    re.IGNORECASE | re.VERBOSE,
)
_PLURALS = (
    ("ves", "f"),
    ("ves", "fe"),
    ("ies", "y"),
    ("oes", "o"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("sses", "ss"),
    ("xes", "x"),
)
# Arguments by which a kind of constraint orders words that the answer must contain.
_ORDERED_WORDS = {
    "starts_with": "phrase",
    "ends_with": "phrase",
    "include_keywords": "keywords",
    "keyword_frequency": "keyword",
    "paragraph_first_word": "word",
    "one_of": "options",
    "exact_answer": "answer",
    "sections": "marker",
    "postscript": "marker",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer: the share of constraints it satisfies and the names of the guards it fails ("defect", "empty" too)."""

    share: float
    failed: tuple[str, ...]
    guards: int

    @property
    def satisfied(self) -> bool:
        return self.share == 1.0

    @property
    def good(self) -> bool:
        return not self.failed

    @property
    def score(self) -> float:
        """The 1 to 6 scale of the oracle's table."""
        if {"defect", "empty"} & set(self.failed):
            return 1.0
        if self.good:
            return 6.0 if self.satisfied else 3.0 + self.share
        return 2.0 + (1 - len(self.failed) / self.guards) if self.satisfied else 1.0 + self.share


class RulesOracle:
    """Judges by the prompt's constraints and by ``recipe.Guard``; free, and the same for the same text.

    An answer is *satisfied* if it meets every constraint and *good* if it passes every guard and has no defects.

    | answer | score |
    | --- | --- |
    | good and satisfied | 6 |
    | good, not satisfied | 3 + share of constraints met (below 4) |
    | satisfied, not good | 2 + share of guards passed (below 3) |
    | neither | 1 + share of constraints met (below 2) |
    | defective or empty | 1 |

    So by the paper's pair rule (positives score 5 or 6, negatives at least 2 less) exactly the good and satisfied answers
    are positives, against all others. P(i beats j) = clip(1/2 + (score_i - score_j) / 2, 0, 1): a whole point decides,
    and less than a point, which is partial credit, is a preference in proportion.

    ``measures`` has "satisfied", "good" and "satisfied_and_good" per candidate, 1.0 or 0.0; ``raw`` is JSON with the
    share and the failed guards of each candidate. A prompt without constraints gives this oracle nothing to decide by:
    OracleError. So does a response without log-probs under the initial policy where ``guard.min_fluency`` asks for them.
    """

    name = "rules"

    def __init__(self, section: recipe.RulesOracle) -> None:
        self.guard = section.guard
        self.needs_logprobs: frozenset[str] = frozenset() if section.guard.min_fluency is None else frozenset({"0"})

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        """Judge the candidates one by one; ``seed`` decides nothing, as nobody is shown an order."""
        verdicts = [self.verdict(prompt, candidate) for candidate in candidates]
        scores = tuple(v.score for v in verdicts)
        flags = {
            "satisfied": [v.satisfied for v in verdicts],
            "good": [v.good for v in verdicts],
            "satisfied_and_good": [v.satisfied and v.good for v in verdicts],
        }
        return Judgment(
            prompt_id=prompt.id,
            response_ids=tuple(c.id for c in candidates),
            oracle=self.name,
            scores=scores,
            matrix=tuple(tuple(preference(a, b) for b in scores) for a in scores),
            measures={name: tuple(float(flag) for flag in column) for name, column in flags.items()},
            raw=canonical_json([{"share": v.share, "failed": list(v.failed)} for v in verdicts]),
        )

    async def aclose(self) -> None:
        """Nothing is held open."""

    def verdict(self, prompt: Prompt, response: Response) -> Verdict:
        """Check one answer. Raises OracleError for a prompt without constraints or a response without log-probs."""
        if not prompt.constraints:
            raise OracleError(
                f"prompt {prompt.id} ({prompt.source or 'unknown source'}): no constraints, so the rules oracle has "
                "nothing to decide by; accepted: prompts with a column 'constraints', as nashtune:constraints has"
            )
        if not response.text.strip():
            return Verdict(0.0, ("empty",), 1)
        share = sum(check(c, response.text) for c in prompt.constraints) / len(prompt.constraints)
        guards = self._guards(prompt, response)
        failed = [name for name, passes in guards.items() if not passes()]
        return Verdict(share, tuple([*failed, "defect"] if response.defects else failed), len(guards))

    def _guards(self, prompt: Prompt, response: Response) -> dict[str, Callable[[], bool]]:
        """The guards that are on, by name."""
        guard, text = self.guard, response.text
        count = len(words(text))
        guards: dict[str, Callable[[], bool]] = {
            "min_words": lambda: count >= guard.min_words,
            "max_words": lambda: count <= guard.max_words,
            "min_distinct_words": lambda: len(set(words(text.casefold()))) >= guard.min_distinct_words * count,
        }
        if guard.finished:
            guards["finished"] = lambda: response.finish != "length"
        topic = prompt.topic
        if guard.on_topic and topic is not None:
            guards["on_topic"] = lambda: names_topic(text, topic)
        if guard.no_meta:
            guards["no_meta"] = lambda: not talks_about_instruction(prompt, text)
        min_fluency = guard.min_fluency
        if min_fluency is not None:
            guards["min_fluency"] = lambda: _fluency(response) >= min_fluency
        return guards


def preference(a: float, b: float) -> float:
    """P(an answer of score a beats one of score b); preference(a, b) + preference(b, a) = 1."""
    return min(1.0, max(0.0, 0.5 + (a - b) / 2))


def names_topic(text: str, topic: str) -> bool:
    """Whether the topic's head word (its last), in singular or plural and any case, is a word of the text."""
    parts = words(topic.casefold())
    if not parts:
        return True
    head = _singulars(parts[-1])
    return any(head & _singulars(word) for word in words(text.casefold()))


def _singulars(word: str) -> set[str]:
    """The word and what its singular may be, if it is a regular plural (caves: cave; wolves: wolf; flies: fly)."""
    found = {word}
    if word.endswith("s") and not word.endswith(("ss", "us")):
        found.add(word[:-1])
        found |= {word[: -len(plural)] + one for plural, one in _PLURALS if word.endswith(plural)}
    return found


def talks_about_instruction(prompt: Prompt, text: str) -> bool:
    """Whether the text speaks of its own instruction, once the topic and the words that constraints order are out."""
    phrases = [prompt.topic or ""]
    for constraint in prompt.constraints:
        ordered = constraint.args.get(_ORDERED_WORDS.get(constraint.kind, ""), ())
        phrases += [ordered] if isinstance(ordered, str) else ordered
    for phrase in filter(None, map(str.strip, phrases)):
        text = re.sub(rf"(?<!\w){re.escape(phrase)}(?!\w)", " ", text, flags=re.IGNORECASE)
    return bool(_META.search(text))


def _fluency(response: Response) -> float:
    """Mean log-prob per token under the initial policy, nats."""
    total = response.logprobs.get("0")
    if total is None or not response.token_ids:
        raise OracleError(
            f"response {response.id} ({response.source}): guard.min_fluency needs its tokens and log-prob under policy "
            f"'0'; it has {len(response.token_ids)} tokens and log-probs for {sorted(response.logprobs)}"
        )
    return total / len(response.token_ids)
