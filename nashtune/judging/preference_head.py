"""The head of a preference model: from the features of answers to the log-odds that one beats another.

Legend: K answers, M answers of all prompts, N comparisons, D feature size, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nashtune.errors import OracleError

HeadKind = Literal["general", "bradley-terry"]
RANK = 8
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the squared parameters that are tried; features have length about 1, so they suit every D."""
TEMPERATURES = torch.logspace(-1.5, 1.5, 241, dtype=torch.float64)
"""Temperatures that are tried: 1/32 to 32 in steps of 3 %."""
STEPS = 200
"""Most iterations of L-BFGS."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """N comparisons by the places of their two answers among M, with P(first beats second)."""

    firsts: Tensor
    """[N] long"""
    seconds: Tensor
    """[N] long"""
    targets: Tensor
    """[N] in [0, 1]"""

    def where(self, chosen: Sequence[bool]) -> Comparisons:
        mask = torch.tensor(list(chosen), dtype=torch.bool, device=self.firsts.device)
        return Comparisons(self.firsts[mask], self.seconds[mask], self.targets[mask])


@dataclass(frozen=True, slots=True)
class PreferenceHead:
    """logit(i, j) = (w.(x_i - x_j) + x_i^T (U V^T - V U^T) x_j) / temperature, x = (features - centre) / scale.

    ``bradley-terry`` has no U and V (r = 0), so preferences are transitive; ``general`` is any antisymmetric form of rank
    at most 2 r besides, as preferences with cycles need. logit(i, j) = -logit(j, i) holds exactly, also in rounding: both
    are differences of the same two numbers.
    """

    centre: Tensor
    """[D]"""
    scale: Tensor
    """[D]; the features' standard deviation times sqrt(D), so that x has length about 1."""
    w: Tensor
    """[D]"""
    u: Tensor
    """[D, r]"""
    v: Tensor
    """[D, r]"""
    temperature: float = 1.0

    @property
    def kind(self) -> HeadKind:
        return "general" if self.u.shape[1] else "bradley-terry"

    def at(self, temperature: float) -> PreferenceHead:
        """The same head with another temperature."""
        return replace(self, temperature=temperature)

    def logits(self, features: Tensor) -> Tensor:
        """Log-odds that i beats j for the answers of one prompt [K, D] -> [K, K]."""
        strength, left, right = self._parts(self.standardised(features))
        products = left @ right.T
        return ((strength[:, None] - strength[None]) + (products - products.T)) / self.temperature

    def pair_logits(self, features: Tensor, firsts: Tensor, seconds: Tensor) -> Tensor:
        """Log-odds that the first beats the second: features [M, D], places [N] and [N] -> [N]."""
        return self._pair_logits(self.standardised(features), firsts, seconds)

    def standardised(self, features: Tensor) -> Tensor:
        """x of the formula: [M, D] -> [M, D]."""
        return (features - self.centre) / self.scale

    def _pair_logits(self, x: Tensor, firsts: Tensor, seconds: Tensor) -> Tensor:
        strength, left, right = self._parts(x)
        cycle = (left[firsts] * right[seconds]).sum(-1) - (left[seconds] * right[firsts]).sum(-1)
        return ((strength[firsts] - strength[seconds]) + cycle) / self.temperature

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x @ self.w, x @ self.u, x @ self.v

    def save(self, file: Path) -> None:
        from safetensors.torch import save_file

        tensors = {name: getattr(self, name).cpu().contiguous() for name in ("centre", "scale", "w", "u", "v")}
        save_file(tensors | {"temperature": torch.tensor(self.temperature, dtype=torch.float64)}, file)

    @staticmethod
    def load(file: Path, device: torch.device | str = "cpu") -> PreferenceHead:
        """Raises OracleError naming the file where it is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = load_file(file, device=str(device))
            temperature = float(found.pop("temperature"))
            return PreferenceHead(**found, temperature=temperature)
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise OracleError(f"{file}: missing or not the head of a preference model: {error}") from None


def fit_head(features: Tensor, data: Comparisons, kind: HeadKind, ridge: float, seed: int) -> PreferenceHead:
    """The head that minimises mean cross-entropy + ridge (|w|^2 + |U|^2 + |V|^2) over ``data``, by L-BFGS.

    features fp32 [M, D]. Standardisation is by the answers that occur in ``data``. Each comparison counts in both
    orders: exact antisymmetry makes the two the same equation, so it is computed once. ``seed`` decides where U and V
    start (w starts at 0). Deterministic on one machine.
    """
    used = features[torch.unique(torch.cat([data.firsts, data.seconds]))]
    size = features.shape[1]
    spread = used.std(0, correction=0)
    scale = torch.where(spread > 1e-6 * spread.max().clamp_min(1e-12), spread, torch.inf) * size**0.5
    generator = torch.Generator().manual_seed(seed % 2**63)
    rank = RANK if kind == "general" else 0
    # Zero is a saddle point of U V^T - V U^T, so they start at random, large enough to matter.
    u, v = (0.3 * torch.randn(size, rank, generator=generator).to(features) for _ in range(2))
    w = torch.zeros(size, device=features.device)
    head = PreferenceHead(used.mean(0), scale, w, u, v)
    x = head.standardised(features)
    parameters = [w, u, v] if rank else [w]
    for parameter in parameters:
        parameter.requires_grad_()
    solver = torch.optim.LBFGS(parameters, max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = head._pair_logits(x, data.firsts, data.seconds)
        value = F.binary_cross_entropy_with_logits(logits, data.targets)
        value = value + ridge * torch.stack([(p**2).sum() for p in parameters]).sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[arg-type]
    return replace(head, w=w.detach(), u=u.detach(), v=v.detach())


@dataclass(frozen=True, slots=True)
class Choice:
    """What the inner split of the training prompts decided."""

    kind: HeadKind
    ridge: float
    temperature: float
    log_loss: dict[str, float]
    """Best log loss of each kind of head on the inner split (nats)."""


def choose(features: Tensor, data: Comparisons, inner: Sequence[bool], kinds: Sequence[HeadKind], seed: int) -> Choice:
    """Fit on the comparisons not ``inner`` [N]; take the kind, ridge and temperature that predict the inner ones best."""
    fitting, checking = data.where([not held for held in inner]), data.where(inner)
    best: tuple[float, Choice] | None = None
    losses: dict[str, float] = {}
    for kind in kinds:
        for ridge in RIDGES:
            head = fit_head(features, fitting, kind, ridge, seed)
            logits = head.pair_logits(features, checking.firsts, checking.seconds)
            temperature, loss = calibrate(logits, checking.targets)
            losses[kind] = min(loss, losses.get(kind, loss))
            if best is None or loss < best[0]:
                best = loss, Choice(kind, ridge, temperature, losses)
    assert best is not None, "at least one kind of head"
    return best[1]


def calibrate(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """The temperature of least cross-entropy, and that cross-entropy (nats): logits [N], targets [N] in [0, 1].

    Targets are drawn towards 1/2 as if each had been seen to go either way once more among N (Platt, 1999): a few
    comparisons that all come out right would otherwise ask for certainty.
    """
    scaled = logits.double().cpu()[None] / TEMPERATURES[:, None]
    count = len(targets)
    wanted = ((targets.double().cpu() * count + 1) / (count + 2)).expand_as(scaled)
    losses = F.binary_cross_entropy_with_logits(scaled, wanted, reduction="none").mean(1)
    best = int(losses.argmin())
    return float(TEMPERATURES[best]), float(losses[best])
