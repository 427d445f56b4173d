"""What a suite of evaluation is to the rest of nashtune.

A suite turns a policy into figures in three steps, each of which is committed and not done again:

1. answers: ``prompts(turn, earlier)`` says what the policy is asked in each turn and ``decoding(item)`` how it answers;
   nashtune samples, by work units that resume.
2. verdicts: ``judge(answers, dispatcher)`` returns one JSON-able row for each verdict; paid calls go through the
   dispatcher, so that the ledger resumes them, prices them and holds their budget. A suite whose ``engine`` is None
   (verifiable instructions) gets no dispatcher.
3. scores: ``scores(rows, answers, confidence)`` is arithmetic over the rows; it is done again where only what is shown
   has changed.

To add one: a subclass of ``SuiteSection`` in ``nashtune/recipe/evaluation.py`` (its settings, its metrics' names), a
class with these methods, and a line in ``nashtune/suites/registry.py``. For example Arena-Hard is as AlpacaEval with two
games a prompt as rows; IFEval has ``engine = None`` and checks in ``judge``; a suite that brings its own runner (lm-eval)
has ``turns = 0`` and implements ``Runner.run(policy_folder, work_folder)``, which returns the rows of step 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from nashtune.recipe import EngineSection
from nashtune.records import Interval, Prompt

if TYPE_CHECKING:
    from nashtune.judging.dispatch import Dispatcher

Row = dict[str, Any]
"""A verdict, as JSON values."""
Answers = Sequence[Sequence[str]]
"""[items][turns] texts."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the policy answers an item."""

    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """A table for display: ``columns`` name the figures, ``rows`` hold a label and a figure for each column (None: not known)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class SuiteScores:
    """A suite's figures for one policy."""

    metrics: Mapping[str, Interval | float]
    """The ends of the metrics' names, as the section's ``metrics``, in its units (percent are 0 to 100)."""
    items: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of metrics that are means over items: each item's value, in the metric's unit, for paired comparisons."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How many: answers, verdicts, unusable ones, ..."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further figures and settings worth showing, by name."""
    tables: tuple[ScoreTable, ...] = ()
    warnings: tuple[str, ...] = ()
    """What a reader must know before believing a figure."""
    unfit: Mapping[str, str] = field(default_factory=dict)
    """Metrics by which this policy may not be chosen, with the reason."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Given:
    """Answers from a file, and whose they are."""

    generator: str
    answers: Answers


@runtime_checkable
class Suite(Protocol):
    """A suite, opened with its settings and data."""

    @property
    def turns(self) -> int:
        """How often the policy is asked; 0: the suite runs the policy itself."""
        ...

    @property
    def engine(self) -> EngineSection | None:
        """The judge's server; None where nobody is asked."""
        ...

    @property
    def reads_logprobs(self) -> bool:
        """Whether the judge must give log-probs."""
        ...

    @property
    def calls(self) -> int:
        """The most calls that judging takes; for progress."""
        ...

    def check(self) -> None:
        """Raises EvaluationError where judging or scoring could not work; asked before anything is sampled."""
        ...

    def identity(self) -> dict[str, Any]:
        """Besides the settings that count: what decides the verdicts on given answers (fingerprints of data)."""
        ...

    def prompts(self, turn: int, earlier: Answers) -> list[Prompt]:
        """What the policy is asked in turn 1, 2, ..., an item each; ``earlier`` are the answers to the turns before."""
        ...

    def decoding(self, item: int) -> Decoding:
        """How it answers an item."""
        ...

    async def judge(self, answers: Answers, dispatcher: Dispatcher | None) -> list[Row]:
        """A row for each verdict; an unusable reply is a row with its reason."""
        ...

    def scores(self, rows: Sequence[Row], answers: Answers, confidence: float) -> SuiteScores:
        """The figures. Raises EvaluationError where no verdict is usable."""
        ...

    def read_answers(self, file: Path) -> Given:
        """Answers in the suite's own published format. Raises EvaluationError naming file and entry."""
        ...

    def export(self, folder: Path, rows: Sequence[Row], answers: Answers, generator: str) -> list[Path]:
        """Write what others' tools read -> the files written."""
        ...


@runtime_checkable
class Runner(Protocol):
    """A suite that runs the policy itself (``turns`` is 0)."""

    def run(self, policy_folder: Path, work_folder: Path) -> list[Row]:
        """Evaluate the model in ``policy_folder``; resume from ``work_folder`` what it can."""
        ...


@runtime_checkable
class ReadsVerdicts(Protocol):
    """A suite that can be scored from verdicts others have published."""

    def read_verdicts(self, file: Path) -> tuple[str, list[Row], Answers]:
        """Whose answers, the verdicts' rows, and the answers. Raises EvaluationError naming the entry."""
        ...


@runtime_checkable
class Compares(Protocol):
    """A suite with a metric that is no mean over items, which it compares itself."""

    def differences(
        self, a: tuple[Sequence[Row], Answers], b: tuple[Sequence[Row], Answers], confidence: float
    ) -> Mapping[str, tuple[Interval, float]]:
        """a less b on the items that both have verdicts for, and the p-value of no difference, by the ends of the metrics'
        names."""
        ...
