"""The mean of several policies' weights, tensor by tensor: no whole policy is ever in memory, only one shard of the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nashtune.errors import ModelError
from nashtune.records import Policy

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


def average_policies(policies: Sequence[Policy], folder: Path) -> None:
    """Write to ``folder`` a policy whose weights are the uniform mean of those of ``policies``, in float32; everything else
    (configuration, tokenizer, division into shards) is the last one's. It appears whole or not at all.

    Means are summed in float64 and rounded once. Raises ModelError where the policies differ in the names, shapes or integer
    values of their tensors, or have no safetensors.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in policies[-1].folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name != "README.md":
            shutil.copy2(file, partial / file.name)
    with ExitStack() as stack:
        readers = [_Weights(policy, stack) for policy in policies]
        size = 0
        for shard, names in readers[-1].shards().items():
            tensors = {name: _mean(name, readers) for name in names}
            save_file(tensors, partial / shard, metadata={"format": "pt"})
            size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _say_float32(partial, size)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


class _Weights:
    """A policy's tensors by name, in however many files; ``stack`` closes them."""

    def __init__(self, policy: Policy, stack: ExitStack):
        self.policy = policy
        index, single = policy.folder / INDEX, policy.folder / WEIGHTS
        if index.is_file():
            self.files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        elif single.is_file():
            self.files = dict.fromkeys(_open(single, stack).keys(), WEIGHTS)
        else:
            raise ModelError(f"{policy.folder}: neither {INDEX} nor {WEIGHTS}; only safetensors can be averaged")
        self._open = {name: _open(policy.folder / name, stack) for name in set(self.files.values())}

    def shards(self) -> dict[str, list[str]]:
        """Tensor names by file."""
        found: dict[str, list[str]] = {}
        for name, file in self.files.items():
            found.setdefault(file, []).append(name)
        return found

    def tensor(self, name: str) -> Tensor:
        return self._open[self.files[name]].get_tensor(name)


def _open(file: Path, stack: ExitStack):
    try:
        return stack.enter_context(safe_open(file, framework="pt"))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from None


def _mean(name: str, readers: Sequence[_Weights]) -> Tensor:
    lacking = [reader.policy.folder for reader in readers if reader.files.keys() != readers[-1].files.keys()]
    if lacking:
        raise ModelError(f"{lacking[0]}: other tensors than {readers[-1].policy.folder}; accepted: policies of one run")
    first = readers[0].tensor(name)
    total = first.double()
    for reader in readers[1:]:
        other = reader.tensor(name)
        if other.shape != first.shape or (not other.is_floating_point() and not torch.equal(other, first)):
            raise ModelError(
                f"{reader.policy.folder}: {name} differs in shape, or in its integers, from {readers[0].policy.folder}"
            )
        total += other.double()
    return (total / len(readers)).float() if first.is_floating_point() else first


def _say_float32(folder: Path, size: int) -> None:
    """The configuration and the index name the dtype and the bytes of what was averaged."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if (index := folder / INDEX).is_file():
        found = json.loads(index.read_text(encoding="utf-8"))
        found.setdefault("metadata", {})["total_size"] = size
        index.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
