"""Reference log-probs as work units: what a worker of an engine computes and commits, and how training reads it.

A unit is a few optimizer batches. Its values are what the worker computed, once and for all: the trainer reads what is committed
and computes nothing of its own, so that it does not matter on which kind of machine each of the two runs, nor in how many
processes training is started again. A worker with the trainer's number of threads, device and precision computes the trainer's
own values to the last bit; others differ by the rounding of their arithmetic, which each object records. Only a precision other
than the trainer's is refused: policy and reference would not be the same function.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from nashtune.errors import ModelError, StoreError, TrainingError
from nashtune.model.loading import default_device
from nashtune.recipe import TrainSection
from nashtune.records import Policy
from nashtune.scale.units import Facts, Unit
from nashtune.seeds import content_hash
from nashtune.store.files import create_once, whole
from nashtune.training.logprobs import check_fits
from nashtune.training.machine import deterministic
from nashtune.training.packing import Plan, TrainingPair, fill, packed_tokens
from nashtune.training.references import SCHEMA, batch_digest
from nashtune.training.trainee import Precision, Trainee

UNIT_TOKENS = 1 << 17
"""Most tokens of a unit that has more than one batch: minutes of a CPU, seconds of a GPU."""
LEAST_UNITS = 16
"""Units that small sets are cut into, batches permitting, so that several workers have something to do."""
HOW = ("precision", "attention", "liger", "compile", "lora", "microbatch_tokens")
"""Settings of training that decide its log-probs."""
INPUTS = pa.schema(
    {"batch": pa.int32(), "microbatch": pa.int32(), "pair_id": pa.string()}
    | dict.fromkeys(("prompt_ids", "chosen_ids", "rejected_ids"), pa.list_(pa.int32()))
)
NOTE = b"nashtune"
"""Key of the parquet metadata that says what a unit's values are."""
Batches = list[list[list[TrainingPair]]]
"""batch -> micro-batch -> pair."""


def cut(pairs: Sequence[TrainingPair], plan: Plan) -> list[tuple[int, ...]]:
    """Batches of each unit: a function of the pairs alone, so that whoever goes on finds the same units."""
    costs = [sum(packed_tokens([pairs[i] for i in microbatch]) for microbatch in batch) for batch in plan.batches]
    return fill(range(len(costs)), costs, min(UNIT_TOKENS, sum(costs) // LEAST_UNITS))


def encode_inputs(pairs: Sequence[TrainingPair], plan: Plan, batches: Sequence[int]) -> bytes:
    """A unit's pairs as a parquet file, in the plan's micro-batches."""
    rows = [
        {
            "batch": batch,
            "microbatch": number,
            "pair_id": pairs[i].id,
            "prompt_ids": pairs[i].prompt_ids,
            "chosen_ids": pairs[i].chosen_ids,
            "rejected_ids": pairs[i].rejected_ids,
        }
        for batch in batches
        for number, microbatch in enumerate(plan.batches[batch])
        for i in microbatch
    ]
    return _encode(pa.Table.from_pylist(rows, schema=INPUTS))


def unit_key(pairs: Sequence[TrainingPair], plan: Plan) -> str:
    """Hash of all batches, token by token: with the policy and the precision it decides the log-probs."""
    return content_hash([batch_digest(pairs, batch) for batch in plan.batches])


@dataclass(frozen=True, slots=True)
class ReferenceScorer:
    """A work-unit role: log-probs of training pairs under a fixed policy, in the layout and precision of training."""

    policy: Policy
    train: TrainSection

    def key(self) -> str:
        how = self.train.model_dump(mode="json", include=set(HOW))
        return content_hash("reference", self.policy.fingerprint, how)

    def open(self) -> Trainee:
        """Raises ModelError for a model that cannot be trained, or that does not fit into the worker's memory."""
        with _room_for(self.policy):
            return Trainee.load_fixed(self.policy, Precision.of(self.train))

    @torch.no_grad()
    def work(self, opened: Trainee, unit: Unit) -> Facts:
        """Compute the unit's log-probs and commit them. Raises TrainingError for a pair that does not fit the model."""
        started = time.perf_counter()
        batches = decode_inputs(unit.source)
        pairs = [pair for batch in batches for microbatch in batch for pair in microbatch]
        check_fits(opened.model, ((f"pair {pair.id}", pair.answers()) for pair in pairs))
        with deterministic(), _room_for(self.policy):
            values = torch.cat([opened.forward(microbatch).cpu() for batch in batches for microbatch in batch])
        ids = [pair.id for pair in pairs]
        table = pa.table([ids, values[:, 0].numpy(), values[:, 1].numpy()], schema=SCHEMA)
        note = {"policy": self.policy.fingerprint, **_machine(opened.precision)}
        create_once(unit.target, _encode(table.replace_schema_metadata({NOTE: json.dumps(note)})))
        tokens = sum(packed_tokens(microbatch) for batch in batches for microbatch in batch)
        return {"pairs": len(pairs), "tokens": tokens, "seconds": time.perf_counter() - started}


def decode_inputs(file: Path) -> Batches:
    """A unit's pairs. Raises StoreError naming the file where it is missing or damaged."""
    rows = _table(file, INPUTS).to_pylist()
    return [
        [[_pair(row) for row in microbatch] for _, microbatch in groupby(batch, key=lambda row: row["microbatch"])]
        for _, batch in groupby(rows, key=lambda row: row["batch"])
    ]


def read_units(files: Sequence[Path], pairs: Sequence[TrainingPair], policy: Policy, precision: Precision) -> Tensor:
    """Committed log-probs [pairs, 2] in the order of ``pairs``. Raises StoreError where a unit is missing, damaged, or of
    another policy or other pairs; TrainingError where it was computed in another ``precision``."""
    place = {pair.id: number for number, pair in enumerate(pairs)}
    out = torch.full((len(pairs), 2), float("nan"))
    for file in files:
        table = _table(file, SCHEMA)
        note = json.loads((table.schema.metadata or {}).get(NOTE, b"{}"))
        ids = table["pair_id"].to_pylist()
        if note.get("policy") != policy.fingerprint or not place.keys() >= set(ids):
            raise StoreError(f"{file}: holds log-probs of another policy or of other pairs; {_REMEDY}")
        if note["precision"] != str(precision):
            raise TrainingError(
                f"{file}: reference log-probs were computed in {note['precision']} (on {note['device']}), but training computes "
                f"in {precision}; accepted: train.precision other than auto, or workers and trainer on one kind of machine"
            )
        values = torch.stack([torch.tensor(table[side].to_numpy()) for side in ("chosen", "rejected")], 1)
        out[[place[i] for i in ids]] = values
    if lacking := int(out.isnan().any(1).sum()):
        raise StoreError(f"{files[0].parent}: {lacking} of {len(pairs)} pairs have no reference log-probs; {_REMEDY}")
    return out


_REMEDY = "remove it, and the same command computes that unit again"


def _table(file: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(io.BytesIO(whole(file)))
        return table.cast(schema.with_metadata(table.schema.metadata))
    except FileNotFoundError:
        raise StoreError(f"{file}: missing; run the same command again to compute it") from None
    except (ValueError, pa.ArrowException) as error:  # a schema that does not match is a ValueError
        raise StoreError(f"{file}: damaged: {error}; {_REMEDY}") from None


def _encode(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _pair(row: dict[str, Any]) -> TrainingPair:
    ids = (tuple(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return TrainingPair(row["pair_id"], *ids, r_chosen=0.0, r_rejected=0.0, score_chosen=None, score_rejected=None)


def _machine(precision: Precision) -> dict[str, Any]:
    """What decides how values are rounded."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else default_device().type
    return {
        "precision": str(precision),
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


@contextmanager
def _room_for(policy: Policy) -> Iterator[None]:
    """Says what to do where a worker's memory does not hold the policy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"reference log-probs: policy {policy.name!r} does not fit into one worker's memory ({error}); accepted: "
            "scale.references: trainer, which has the training processes compute them"
        ) from error
