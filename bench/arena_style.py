"""How far Arena-Hard's intervals and style control can be believed: simulated judgments of which the truth is known.

    python bench/arena_style.py [--rounds 200]      # about a minute on one core

Each round draws 500 prompts: a judge of log-odds strength + 2.5 x length feature + what the prompt itself is worth (standard
deviation 1.5), asked in both orders; a quarter of its verdicts are decisive. Answers are longer than the baseline's by a
factor that varies from prompt to prompt. Coverage is the share of rounds whose interval holds the truth (95 % is right for
ours, 90 % for the published one).
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import expit

from nashtune.suites.arena_hard.battles import Battles
from nashtune.suites.arena_hard.bradley_terry import style_controlled
from nashtune.suites.arena_hard.scores import clustered_win_rate, published_win_rate
from nashtune.suites.arena_hard.style import Style, style_features

PROMPTS, WORTH, SPREAD, DECISIVE = 500, 2.5, 1.5, 0.25
EFFECTS = np.random.default_rng(0).normal(0, SPREAD, 100_000)


def mean_rate(logits: np.ndarray) -> float:
    """The win rate over prompts of a judge with these log-odds."""
    return float(expit(logits + EFFECTS[: len(logits)]).mean())


def simulated(
    rng: np.random.Generator, strength: float, longer: float
) -> tuple[Battles, dict[str, dict[str, Style]], np.ndarray]:
    """Battles, styles and each prompt's log-odds without its own effect."""
    uids = [str(i) for i in range(PROMPTS)]
    styles = {
        name: {uid: Style(int(rng.lognormal(6 + shift, 0.5)), *map(int, rng.poisson(3, 3))) for uid in uids}
        for name, shift in (("base", 0.0), ("model", longer))
    }
    length = style_features(list(styles["model"].values()), list(styles["base"].values()))[:, 0]
    logits = strength + WORTH * length
    p = expit(logits + rng.normal(0, SPREAD, PROMPTS))
    won = (rng.random((PROMPTS, 2)) < p[:, None]).astype(float).ravel()
    weight = np.where(rng.random(2 * PROMPTS) < DECISIVE, 3.0, 1.0)
    uid = np.repeat(uids, 2)
    return Battles(uid, np.full(2 * PROMPTS, "model"), np.full(2 * PROMPTS, "base"), won, weight), styles, logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    print(
        "| strength | longer | true rate | ours holds it | published holds it | true at equal style | raw | ours, style | holds |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for strength, longer in ((0.0, 0.0), (0.0, 0.7), (-0.8, 0.7), (0.8, 0.3)):
        rng = np.random.default_rng([int(10 * strength) + 50, int(10 * longer)])
        lengths = np.concatenate([simulated(rng, 0.0, longer)[2] for _ in range(100)])
        truth = mean_rate(strength + lengths)
        equal = mean_rate(np.full(len(EFFECTS), strength))
        ours = shown = held = 0
        raw, controlled = [], []
        for seed in range(rounds):
            battles, styles, _ = simulated(rng, strength, longer)
            interval, published = clustered_win_rate(battles, 0.95), published_win_rate(battles, seed=seed)
            style = style_controlled(battles, styles, seed=seed).win_rates["model"]
            ours += interval.low <= truth <= interval.high
            shown += published.low <= truth <= published.high
            held += style.low <= equal <= style.high
            raw.append(interval.value)
            controlled.append(style.value)
        cells = [
            f"{strength:+.1f}",
            f"x{np.exp(longer):.1f}",
            f"{100 * truth:.1f} %",
            f"{ours / rounds:.0%}",
            f"{shown / rounds:.0%}",
        ]
        cells += [f"{100 * equal:.1f} %", f"{100 * np.mean(raw):.1f} %"]
        cells += [f"{100 * np.mean(controlled):.1f} +- {100 * np.std(controlled):.1f} %", f"{held / rounds:.0%}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
