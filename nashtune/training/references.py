"""Reference log-probs: computed once, kept in create-if-absent parquet shards, read back for training."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from nashtune.errors import StoreError
from nashtune.store.files import create_once
from nashtune.training.packing import Plan, TrainingPair, shortest
from nashtune.training.world import ALONE, World

SHARD_BATCHES = 8
SCHEMA = pa.schema({"pair_id": pa.string(), "chosen": pa.float32(), "rejected": pa.float32()})
Forward = Callable[[Sequence[TrainingPair]], Tensor]
"""Pairs of one micro-batch -> their log-probs [n, 2] (chosen, rejected)."""


@dataclass(frozen=True, slots=True)
class ReferenceShards:
    """Log-probs of a plan's pairs under one fixed policy, in the plan's micro-batches. ``folder`` belongs to that
    policy, plan, precision and kind of machine."""

    folder: Path
    pairs: Sequence[TrainingPair]
    plan: Plan
    world: World = ALONE

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there. For all ranks, which take rank 0's word."""
        return self.world.agree(lambda: [shard for shard in range(self._count) if not self._file(shard).exists()])

    @torch.no_grad()
    def compute(self, forward: Forward) -> None:
        """Fill the missing shards, each rank its own. For all ranks."""
        missing = self.missing()
        passes = [
            sum(len(self._microbatches(s)) for s in missing[r :: self.world.size]) for r in range(self.world.size)
        ]
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
            for microbatch in self._microbatches(shard):
                pairs = [self.pairs[i] for i in microbatch]
                ids += [pair.id for pair in pairs]
                rows.append(forward(pairs).cpu())
            values = torch.cat(rows)
            table = pa.table([ids, values[:, 0].numpy(), values[:, 1].numpy()], schema=SCHEMA)
            sink = io.BytesIO()
            pq.write_table(table, sink, compression="zstd")
            create_once(self._file(shard), sink.getvalue())

    def read(self) -> Tensor:
        """[pairs, 2] in the order of ``pairs``. Raises StoreError where a shard is damaged or of other pairs."""
        out = torch.full((len(self.pairs), 2), float("nan"))
        for shard in range(self._count):
            file, order = self._file(shard), [i for microbatch in self._microbatches(shard) for i in microbatch]
            try:
                table = pq.read_table(file, schema=SCHEMA)
            except (OSError, pa.ArrowException) as error:
                raise StoreError(f"{file}: missing or damaged: {error}") from None
            if table["pair_id"].to_pylist() != [self.pairs[i].id for i in order]:
                raise StoreError(f"{file}: holds other pairs than this job's; remove {self.folder}")
            out[order] = torch.stack([torch.tensor(table[side].to_numpy()) for side in ("chosen", "rejected")], 1)
        return out

    @property
    def _batches(self) -> int:
        """Batches in a shard: fewer where there are more ranks to share them."""
        return max(1, SHARD_BATCHES // self.world.size)

    @property
    def _count(self) -> int:
        return -(-len(self.plan.batches) // self._batches)

    def _file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.parquet"

    def _microbatches(self, shard: int) -> list[tuple[int, ...]]:
        batches = self.plan.batches[shard * self._batches : (shard + 1) * self._batches]
        return [microbatch for batch in batches for microbatch in batch]
