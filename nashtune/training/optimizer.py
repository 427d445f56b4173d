"""AdamW over fp32 weights: the model's own, or masters beside bf16 ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from nashtune.errors import TrainingError
from nashtune.recipe import TrainSection

FUSED = {"cpu", "cuda"}
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")
"""What a checkpoint keeps of an optimizer's state: torch's names, and those of 8-bit moments."""


def learning_rate(step: int, steps: int, peak: float, section: TrainSection) -> float:
    """Rate of step 0, 1, ... of ``steps``: ``warmup_steps`` equal rises to the peak, which the step after them
    has; then constant, or down so that it would be 0 at ``step == steps``, one past the last, which is never asked for:
    the last step's rate is peak / (steps - warmup_steps) by the linear schedule."""
    warmup = section.warmup_steps
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    match section.schedule:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - done)
        case "cosine":
            return peak * (1 + math.cos(math.pi * done)) / 2


class Optimizer:
    """Gradients are summed, clipped and applied in fp32, whatever dtype the model computes in.

    ``masters`` maps the name of each trained parameter to its fp32 values: the parameter itself where it is fp32.
    ``copies`` are further (copy, original) tensors to renew after each step.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        masters: Mapping[str, Tensor],
        section: TrainSection,
        copies: Sequence[tuple[Tensor, Tensor]] = (),
    ):
        self.masters: dict[str, Tensor] = {}
        self._low: list[tuple[Tensor, Tensor]] = list(copies)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        for name, parameter in parameters.items():
            master = masters.get(name, parameter)
            self.masters[name] = master
            if master is not parameter:
                self._low.append((parameter, master))
                self._hooks.append(parameter.register_post_accumulate_grad_hook(_add_to(master)))
        # Decay pulls weight matrices towards 0; norms and biases are vectors.
        groups = [
            {"params": [m for m in self.masters.values() if m.ndim > 1], "weight_decay": section.weight_decay},
            {"params": [m for m in self.masters.values() if m.ndim <= 1], "weight_decay": 0.0},
        ]
        self._adam = _adamw([g for g in groups if g["params"]], section)
        self._max_norm = section.max_grad_norm
        self._on_cpu = all(master.device.type == "cpu" for master in self.masters.values())
        self._reached: set[str] = set()
        """Parameters that got a gradient since the last step, where they are watched."""
        if self._on_cpu:
            self._reserve()
            self._watch(parameters)

    @torch.no_grad()
    def _reserve(self) -> None:
        """Gradients and moments take their places in memory before the first activations do. Made among those, as they
        come up, they would leave holes in a CPU's heap that nothing of a later step fits into."""
        for master in self.masters.values():
            master.grad = torch.zeros_like(master)
            if isinstance(self._adam, torch.optim.AdamW):
                moments = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}
                self._adam.state[master] = {"step": torch.zeros(()), **moments}

    def _watch(self, parameters: Mapping[str, nn.Parameter]) -> None:
        def watched(name: str) -> Callable[[Tensor], None]:
            return lambda _: self._reached.add(name)

        for name, parameter in parameters.items():
            self._hooks.append(parameter.register_post_accumulate_grad_hook(watched(name)))

    def _unreached(self) -> list[Tensor]:
        """Those without a gradient (an expert that no token was sent to), although zeros lie in its place: AdamW passes over
        them, decay and all, as it does where their ``grad`` is None. Embeddings and output layer get theirs unseen by hooks.
        Parts of parameters spread over ranks are not looked at: one rank's may be zero where another's is not."""
        if not self._on_cpu:
            return []
        found = [master for name, master in self.masters.items() if name not in self._reached]
        return [m for m in found if not isinstance(m, DTensor) and m.grad is not None and not m.grad.any()]

    def clip(self) -> float:
        """Scale the summed gradients down to the section's norm; returns the norm they had (it may not be finite)."""
        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), self._max_norm)
        gathered = getattr(norm, "full_tensor", None)  # of parameters spread over ranks: the whole's
        return float(norm if gathered is None else gathered())

    def step(self, rate: float) -> None:
        """Apply and clear the gradients."""
        for group in self._adam.param_groups:
            group["lr"] = rate
        unreached = [(master, master.grad) for master in self._unreached()]
        for master, _ in unreached:
            master.grad = None
        self._adam.step()
        self._adam.zero_grad(set_to_none=not self._on_cpu)
        for master, zeros in unreached:
            master.grad = zeros
        self._reached.clear()
        self._copy_to_low()

    @torch.no_grad()
    def _copy_to_low(self) -> None:
        for parameter, master in self._low:
            parameter.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """Weights and moments by name, for a checkpoint."""
        tensors = {f"master.{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            moments = self._adam.state.get(master, {})
            tensors |= {f"{key}.{name}": torch.as_tensor(moments[key]) for key in MOMENTS if key in moments}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Callable[[str], Tensor], names: frozenset[str]) -> None:
        """Take back what ``state`` gave; ``tensors`` reads one by name, ``names`` are those there are."""
        for name, master in self.masters.items():
            master.copy_(tensors(f"master.{name}"))
            kept = {key: tensors(f"{key}.{name}").to(master.device) for key in MOMENTS if f"{key}.{name}" in names}
            if "state1" in kept:  # 8-bit moments: tables of the codes come with the state as the library makes it
                kept["step"] = int(kept["step"])  # type: ignore[assignment]
                self._adam.init_state(self._adam.param_groups[0], master, 0, 0)  # type: ignore[attr-defined]
                self._adam.state[master].update(kept)
            elif kept:
                self._adam.state[master] = kept
        self._copy_to_low()

    def release(self) -> None:
        """Free moments and gradients before the policy is saved."""
        for hook in self._hooks:
            hook.remove()
        self._adam.zero_grad(set_to_none=True)
        self._adam.state.clear()


def _adamw(groups: list[dict[str, Any]], section: TrainSection) -> torch.optim.Optimizer:
    """Raises TrainingError where train.optimizer needs a package that is not there."""
    if section.optimizer == "adamw_8bit":
        try:
            import bitsandbytes as bnb  # type: ignore[import-not-found]
        except ImportError:
            raise TrainingError(
                "train.optimizer is 'adamw_8bit', which needs the bitsandbytes package; "
                "`pip install 'nashtune[quantized]'`, or 'adamw'"
            ) from None
        return bnb.optim.AdamW8bit(groups, lr=0.0, betas=section.betas)
    fused = groups[0]["params"][0].device.type in FUSED
    return torch.optim.AdamW(groups, lr=0.0, betas=section.betas, fused=fused)


def _add_to(master: Tensor) -> Callable[[Tensor], None]:
    """Moves a bf16 gradient to its fp32 master as soon as the backward pass has made it."""

    def hook(parameter: Tensor) -> None:
        if parameter.grad is not None:
            if master.grad is None:
                master.grad = parameter.grad.to(master.dtype)
            else:
                master.grad += parameter.grad
            parameter.grad = None

    return hook
