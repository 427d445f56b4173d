"""Reference log-probs: computed once, kept in create-if-absent parquet shards, read back for training.

A shard is one optimizer batch, named by a hash of what is in its micro-batches, so that it can be computed as soon as that batch
is complete, before the rest of the plan is known.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from nashtune.errors import StoreError
from nashtune.store.files import create_once
from nashtune.training.packing import Plan, TrainingPair, shortest
from nashtune.training.world import ALONE, World

SCHEMA = pa.schema({"pair_id": pa.string(), "chosen": pa.float32(), "rejected": pa.float32()})
Forward = Callable[[Sequence[TrainingPair]], Tensor]
"""Pairs of one micro-batch -> their log-probs [n, 2] (chosen, rejected)."""


@dataclass(frozen=True)
class ReferenceShards:
    """Log-probs of a plan's pairs under one fixed policy, in the plan's micro-batches. ``folder`` belongs to that
    policy, precision and kind of machine."""

    folder: Path
    pairs: Sequence[TrainingPair]
    plan: Plan
    world: World = ALONE

    def missing(self) -> list[int]:
        """Batches that have no shard yet. For all ranks, which take rank 0's word."""
        return self.world.agree(lambda: [shard for shard, file in enumerate(self._files) if not file.exists()])

    @torch.no_grad()
    def compute(self, forward: Forward, but: int | None = None) -> None:
        """Fill the missing shards, ``but`` one, each rank its own. For all ranks."""
        missing = [shard for shard in self.missing() if shard != but]
        passes = [sum(len(self.plan.batches[s]) for s in missing[r :: self.world.size]) for r in range(self.world.size)]
        self._fill(self.world.share(missing), forward)
        # A sharded model computes in all ranks or in none.
        if idle := max(passes) - passes[self.world.rank]:
            pair = shortest(self.pairs)
            for _ in range(idle):
                forward([pair])
        self.world.meet()

    def _fill(self, shards: Sequence[int], forward: Forward) -> None:
        for shard in shards:
            ids, rows = [], []
            for microbatch in self.plan.batches[shard]:
                pairs = [self.pairs[i] for i in microbatch]
                self.world.pulse.beat(f"reference log-probs, batch {shard + 1} of {len(self.plan.batches)}")
                ids += [pair.id for pair in pairs]
                rows.append(forward(pairs).cpu())
            self._write(shard, ids, torch.cat(rows))

    def keep(self, shard: int, values: Tensor) -> None:
        """Write a shard whose log-probs came from elsewhere; ``values`` [pairs, 2] are as ``read`` returns them."""
        order = [i for microbatch in self.plan.batches[shard] for i in microbatch]
        self._write(shard, [self.pairs[i].id for i in order], values[order])

    def _write(self, shard: int, ids: Sequence[str], values: Tensor) -> None:
        table = pa.table([ids, values[:, 0].numpy(), values[:, 1].numpy()], schema=SCHEMA)
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        create_once(self._files[shard], sink.getvalue())

    def read(self, but: int | None = None) -> Tensor:
        """[pairs, 2] in the order of ``pairs``, NaN for those of the shard ``but`` where that is not there yet. Raises StoreError
        where a shard is damaged or of other pairs."""
        out = torch.full((len(self.pairs), 2), float("nan"))
        for shard, (file, batch) in enumerate(zip(self._files, self.plan.batches, strict=True)):
            if shard == but and not file.exists():
                continue
            order = [i for microbatch in batch for i in microbatch]
            try:
                table = pq.read_table(file, schema=SCHEMA)
            except (OSError, pa.ArrowException) as error:
                raise StoreError(f"{file}: missing or damaged: {error}") from None
            if table["pair_id"].to_pylist() != [self.pairs[i].id for i in order]:
                raise StoreError(f"{file}: holds other pairs than this job's; remove {self.folder}")
            out[order] = torch.stack([torch.tensor(table[side].to_numpy()) for side in ("chosen", "rejected")], 1)
        return out

    @cached_property
    def _files(self) -> list[Path]:
        return [self.folder / f"{batch_digest(self.pairs, batch)}.parquet" for batch in self.plan.batches]


def batch_digest(pairs: Sequence[TrainingPair], batch: Sequence[Sequence[int]]) -> str:
    """Hash of all that decides a batch's log-probs, besides the policy: who is packed with whom, token by token."""
    digest = hashlib.sha256()
    for microbatch in batch:
        digest.update(array("q", [-1, len(microbatch)]).tobytes())
        for pair in (pairs[i] for i in microbatch):
            digest.update(pair.id.encode())
            for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
                digest.update(array("q", [len(ids), *ids]).tobytes())
    return digest.hexdigest()[:32]
