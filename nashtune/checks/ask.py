"""An oracle's word on a pairwise set: through the ledger, in units that are committed as they are done, in both orders.

A folder holds one check: ``ledger.sqlite``, ``endpoints.json`` and ``judgments/*.parquet``. The same check goes on where it
stopped; a finished one asks nobody.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nashtune import recipe
from nashtune.errors import OracleError
from nashtune.judging.oracle import Oracle
from nashtune.judging.pairwise_set import LabelledPair
from nashtune.judging.registry import Resources, hosted_in, open_oracle, oracle_needs, parts_of, wants_all_at_once
from nashtune.progress import progress
from nashtune.records import Judgment, Policy, Response
from nashtune.seeds import content_hash, seed_for
from nashtune.stages.endpoints import FILE, probe_servers
from nashtune.stages.work import finish
from nashtune.store import tables
from nashtune.store.files import create_once, digest_files, exclusive, remove_partials
from nashtune.together import together

if TYPE_CHECKING:
    from nashtune.judging.dispatch import Payer
    from nashtune.store.ledger import Ledger

UNIT = 32
"""Comparisons judged and committed together."""
UNITS_AT_ONCE = 4


@dataclass(frozen=True)
class Check:
    """Who judges, where it is kept, and what it may cost (dollars). ``orders`` None or 2 shows each comparison in both orders,
    1 in one. ``policy`` is the section of the policy that judges itself."""

    oracle: recipe.Oracle
    folder: Path | None = None
    seed: int = 0
    orders: int | None = None
    budget_usd: float | None = None
    ledger: Path | None = None
    policy: recipe.PolicySection | None = None

    @cached_property
    def judging_policy(self) -> Policy:
        """Raises OracleError where a policy should judge itself and none is named."""
        if self.policy is None:
            raise OracleError("oracle.kind 'self' is judged by a policy; accepted: --recipe, whose policy it then is")
        from nashtune.model.loading import find_policy

        return find_policy(self.policy)

    @property
    def passes(self) -> int:
        """Times each comparison is given to the oracle: twice only where the place shown could matter, and is not the
        oracle's own business (a pairwise judge asks in both orders by itself)."""
        shown = any(isinstance(part, IN_ONE_ORDER) for part in parts_of(self.oracle))
        if self.orders is not None and not shown:
            raise OracleError(
                f"--orders {self.orders}: oracle {self.oracle.kind!r} is not shown two answers in one order; accepted: no "
                "--orders (a pairwise judge always asks in both, others see one answer at a time, people are asked once)"
            )
        return (self.orders or 2) if shown else 1

    @property
    def places(self) -> bool:
        """Whether the oracle is shown both answers, in an order that its judgments tell."""
        in_order = (*IN_ONE_ORDER, recipe.PeopleOracle)
        return isinstance(self.oracle, recipe.PairwiseOracle) or any(
            isinstance(part, in_order) for part in parts_of(self.oracle)
        )


IN_ONE_ORDER = (recipe.RubricOracle, recipe.CompactOracle)
"""Oracles that are shown both answers in one order each time they are asked."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The judgments of each comparison, one for each pass: of the answers in the data's order, then the other way round."""

    folder: Path
    answers: tuple[tuple[Response, Response], ...]
    judgments: tuple[tuple[Judgment, ...], ...]


def ask(source: str, pairs: Sequence[LabelledPair], check: Check) -> Asked:
    """Have every comparison judged that is not yet. Raises OracleError, BudgetError; the same call goes on after either."""
    if needs := oracle_needs(check.oracle):
        raise OracleError(
            f"the oracle reads log-probs under {', '.join(map(repr, sorted(needs)))}, which a data set has none of; "
            "accepted: oracle.guard.min_fluency null"
        )
    if any(isinstance(part, recipe.PairwiseOracle) and part.pairs == "teacher" for part in parts_of(check.oracle)):
        raise OracleError("oracle.pairs is 'teacher', but a data set's answers have no teacher; accepted: all")
    answers = tuple(_answers(pair) for pair in pairs)
    key = _key(pairs, check)
    folder = check.folder or Path("judge-checks") / f"{Path(source).stem or 'data'}-{key}"
    units = [range(start, min(start + UNIT, len(pairs))) for start in range(0, len(pairs), UNIT)]
    files = [folder / "judgments" / f"{number:06d}-{key}.parquet" for number in range(len(units))]
    todo = [(rows, file) for rows, file in zip(units, files, strict=True) if not file.exists()]
    if todo:
        with exclusive(folder / "lock"):
            remove_partials(folder)
            _ask(pairs, answers, check, folder, todo)
    rows = [judgment for file in files for judgment in tables.read(Judgment, file)]
    times = check.passes
    return Asked(folder, answers, tuple(tuple(rows[n * times : (n + 1) * times]) for n in range(len(pairs))))


def _answers(pair: LabelledPair) -> tuple[Response, Response]:
    prompt, texts = pair.comparison.prompt, (pair.comparison.first, pair.comparison.second)
    made = [
        Response(
            id=content_hash("pairwise set", prompt.id, answer.text),
            prompt_id=prompt.id,
            k=k,
            source="student",
            policy="data",
            text=answer.text,
            finish="stop" if answer.finished else "length",
        )
        for k, answer in enumerate(texts)
    ]
    return made[0], made[1]


def _key(pairs: Sequence[LabelledPair], check: Check) -> str:
    """What decides the verdicts: the oracle, with the models in folders it reads, the texts, the seed, the passes."""
    from nashtune.judging.hosted import find_hosted

    models = []
    for part in parts_of(check.oracle):
        if isinstance(part, recipe.SelfOracle):
            models.append(check.judging_policy.fingerprint)
        elif isinstance(part, recipe.PreferenceModelOracle) and (folder := Path(part.folder).expanduser()).is_dir():
            models.append(digest_files(f for f in folder.iterdir() if f.is_file()))
    models += [find_hosted(host).fingerprint for host in hosted_in(check.oracle)]
    texts = [[p.comparison.prompt.id, p.comparison.first.text, p.comparison.second.text] for p in pairs]
    rules = [[[c.kind, dict(c.args)] for c in p.comparison.prompt.constraints] for p in pairs]
    topics = [p.comparison.prompt.topic for p in pairs]
    return content_hash(recipe.identity(check.oracle), models, texts, rules, topics, check.seed, check.passes)


def _ask(
    pairs: Sequence[LabelledPair],
    answers: Sequence[tuple[Response, Response]],
    check: Check,
    folder: Path,
    todo: Sequence[tuple[range, Path]],
) -> None:
    with ExitStack() as stack:
        resources = _resources(check, folder, stack)
        probe_servers(folder / FILE, check.oracle, resources.ledger, resources.payer)  # type: ignore[arg-type]
        oracle = open_oracle(check.oracle, resources)
        left = sum(len(rows) for rows, _ in todo)
        with progress("judging", left, "comparisons") as advance:

            async def unit(rows: range, file: Path) -> None:
                calls = [
                    oracle.judge(pairs[n].comparison.prompt, shown, seed)
                    for n in rows
                    for shown, seed in _showings(answers[n], check)
                ]
                create_once(file, tables.encode(Judgment, await together(calls)))
                advance(len(rows), "")

            at_once = len(todo) if wants_all_at_once(check.oracle) else UNITS_AT_ONCE
            finish(_all(oracle, [unit(rows, file) for rows, file in todo], at_once))


async def _all(oracle: Oracle, work: Sequence[Coroutine[Any, Any, None]], at_once: int) -> None:
    """Do all units, ``at_once`` side by side. Where one fails, those under way are finished first: they are paid for."""
    left = iter(work)
    failed = False

    async def one_after_another() -> None:
        nonlocal failed
        for unit in left:
            if failed:
                unit.close()
                continue
            try:
                await unit
            except BaseException:
                failed = True
                raise

    try:
        await together(one_after_another() for _ in range(min(at_once, len(work))))
    finally:
        for unit in left:
            unit.close()
        await oracle.aclose()


def _showings(answers: tuple[Response, Response], check: Check) -> list[tuple[tuple[Response, Response], int]]:
    """The candidates of each pass and the seed: the same one, so that the second pass shows the first's order reversed."""
    seed = seed_for(check.seed, "judge", answers[0].prompt_id, [a.id for a in answers])
    return [(answers, seed), (answers[::-1], seed)][: check.passes]


def _resources(check: Check, folder: Path, stack: ExitStack) -> Resources:
    opened: list[Ledger] = []

    def ledger() -> Ledger:
        if not opened:
            from nashtune.store.ledger import Ledger

            file = check.ledger or folder / "ledger.sqlite"
            file.parent.mkdir(parents=True, exist_ok=True)
            opened.append(stack.enter_context(closing(Ledger(file))))
        return opened[0]

    def payer() -> Payer:
        from nashtune.judging.dispatch import Payer
        from nashtune.store.ledger import Caps

        return Payer(f"judge-check {folder.name}", 0, Caps(check.budget_usd, None))

    return Resources(ledger=ledger, payer=payer, policy=lambda: check.judging_policy)
