"""A preference model on disk, and as an oracle: P(y beats y' | x) from a causal model's hidden states.

FOLDER/preference_model.json   kind, backbone and its fingerprint, definition of features, held-out report, calibration
FOLDER/head.safetensors        the head's tensors
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nashtune import recipe
from nashtune.errors import ModelError, OracleError, StoreError
from nashtune.judging.bradley_terry import Matrix, sigmoid
from nashtune.judging.fitting import judgment_of_fitting
from nashtune.judging.judge_report import JudgeReport
from nashtune.records import Judgment, Policy, Prompt, Response
from nashtune.store.files import read_json, write_json

if TYPE_CHECKING:
    from nashtune.judging.answer_features import AnswerReader
    from nashtune.judging.preference_head import PreferenceHead

RECORD, HEAD = "preference_model.json", "head.safetensors"


@dataclass(frozen=True, slots=True)
class Backbone:
    """The causal model whose hidden states the head reads, as a recipe names it, and the hash of its contents."""

    model: str
    fingerprint: str
    revision: str | None = None
    trust_remote_code: bool = False

    def find(self) -> Policy:
        """Raises OracleError where the model is missing or not the one the head was fitted on."""
        policy = locate(self.model, self.revision, self.trust_remote_code)
        if policy.fingerprint != self.fingerprint:
            raise OracleError(
                f"preference model: its backbone {self.model!r} has the fingerprint {policy.fingerprint}; accepted: "
                f"{self.fingerprint}, the weights its head was fitted on (fit it again with `nashtune fit-judge`)"
            )
        return policy


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a preference model without its tensors."""

    kind: str
    backbone: Backbone
    features: str
    held_out: JudgeReport
    calibration: dict[str, Any]
    """temperature, and how kind and ridge were chosen."""
    data: dict[str, Any]
    """Sources, counts and seed."""


def read_record(folder: str | Path) -> Record:
    """Raises OracleError where ``folder`` holds no preference model."""
    file = Path(folder).expanduser() / RECORD
    try:
        values = read_json(file)
        backbone, report = Backbone(**values.pop("backbone")), JudgeReport.from_json(values.pop("held_out"))
        return Record(backbone=backbone, held_out=report, **values)
    except (StoreError, KeyError, TypeError, AttributeError) as error:
        raise OracleError(
            f"{file}: no usable record of a preference model ({error}); accepted: a folder that `nashtune fit-judge` wrote"
        ) from None


def check_gate(model_folder: str | Path, least: float) -> None:
    """Raises OracleError where the lower bound of the model's held-out balanced accuracy is below ``least``."""
    found = read_record(model_folder).held_out.balanced_accuracy
    if found.low < least:
        raise OracleError(
            f"{model_folder}: held-out balanced accuracy {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] on "
            f"{found.n} prompts; accepted: a lower bound of at least {least:g} (more comparisons, or another backbone)"
        )


def save(folder: Path, record: Record, head: PreferenceHead) -> None:
    """Write a preference model; the folder appears whole or not at all. Raises OracleError where it exists."""
    if folder.exists():
        raise OracleError(f"{folder}: exists already; accepted: a new folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    head.save(partial / HEAD)
    write_json(partial / RECORD, asdict(record))
    partial.rename(folder)


def locate(model: str, revision: str | None = None, trust_remote_code: bool = False) -> Policy:
    """A backbone by name: folder, .gguf file, package:NAME or hub name. Raises OracleError."""
    from nashtune.model.loading import find_policy

    try:
        return find_policy(recipe.PolicySection(model=model, revision=revision, trust_remote_code=trust_remote_code))
    except ModelError as error:
        raise OracleError(str(error).replace("policy.model", "backbone")) from None


class PreferenceModel:
    """A loaded preference model. ``record`` says how well it does on held-out comparisons."""

    def __init__(self, record: Record, head: PreferenceHead, reader: AnswerReader) -> None:
        self.record, self.head, self._reader = record, head, reader

    @classmethod
    def load(cls, folder: str | Path, max_tokens: int | None = None, batch_tokens: int = 4096) -> PreferenceModel:
        """Raises OracleError for a damaged folder, or a backbone that is missing or has changed since the fit."""
        from nashtune.judging.answer_features import FEATURES, AnswerReader
        from nashtune.judging.preference_head import PreferenceHead
        from nashtune.model.loading import default_device

        folder = Path(folder).expanduser()
        record = read_record(folder)
        if record.features != FEATURES:
            raise OracleError(f"{folder / RECORD}: features {record.features!r}; accepted: {FEATURES!r}")
        head = PreferenceHead.load(folder / HEAD, default_device())
        try:
            reader = AnswerReader(record.backbone.find(), max_tokens, batch_tokens)
        except ModelError as error:
            raise OracleError(str(error).replace("policy.model", "backbone")) from None
        return cls(record, head, reader)

    def matrix(self, prompt: Prompt, answers: Sequence[tuple[str, bool]]) -> Matrix:
        """P(i beats j) of K answers (text, ended by itself) [K][K], 0.5 on the diagonal; None where an answer is too long."""
        item = self._reader.tokens(prompt.messages, answers)
        places = [i for i, fits in enumerate(self._reader.fits(item)) if fits]
        found: list[list[float | None]] = [[None] * len(answers) for _ in answers]
        if places:
            (features,) = self._reader.read([(item[0], [item[1][i] for i in places])])
            for i, row in zip(places, self.head.logits(features).double().tolist(), strict=True):
                for j, logit in zip(places, row, strict=True):
                    found[i][j] = sigmoid(logit)
        return tuple(map(tuple, found))


class PreferenceModelOracle:
    """The matrix of a preference model that ``nashtune fit-judge`` made; free.

    The model is loaded at the first judgment, computes away from the event loop and one prompt at a time. A candidate
    that does not fit ``max_tokens`` with its prompt is not cut: it has no verdict, and where fewer than two are left the
    judgment is unusable. Raises OracleError where the model cannot be used at all.
    """

    name = "preference_model"
    needs_logprobs: frozenset[str] = frozenset()

    def __init__(self, section: recipe.PreferenceModelOracle) -> None:
        self._section = section
        self._model: PreferenceModel | None = None
        self._turn = asyncio.Lock()

    async def judge(self, prompt: Prompt, candidates: Sequence[Response], seed: int) -> Judgment:
        """Judge the whole set; ``seed`` decides nothing, as order cannot matter to an antisymmetric head."""
        async with self._turn:
            matrix, model = await asyncio.to_thread(self._matrix, prompt, candidates)
        return judgment_of_fitting(
            prompt,
            candidates,
            [matrix[i][i] is not None for i in range(len(matrix))],
            matrix,
            oracle=self.name,
            reader="preference model",
            models=(self._section.folder, model),
        )

    async def aclose(self) -> None:
        """Let go of the model."""
        self._model = None

    def _matrix(self, prompt: Prompt, candidates: Sequence[Response]) -> tuple[Matrix, str]:
        if self._model is None:
            section = self._section
            self._model = PreferenceModel.load(section.folder, section.max_tokens, section.batch_tokens)
        backbone = self._model.record.backbone
        matrix = self._model.matrix(prompt, [(c.text, c.finish != "length") for c in candidates])
        return matrix, f"{self._model.record.kind} on {backbone.model}@{backbone.fingerprint}"
