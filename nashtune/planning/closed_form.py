"""What the simulation must give where a formula exists: without failures and spread exactly, with failures in the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nashtune.planning.simulate import Calls, Machines, Preparing, Training, Units, Work


def sampling_seconds(units: Units, machines: Machines) -> float:
    """Without failures and spread: rounds of equal units; the shorter last one counts where it is alone in its round."""
    engines = machines.nodes * machines.engines
    if not units.number:
        return 0.0
    full, rest = divmod(units.number - 1, engines)
    return units.start + units.load + (full + (rest > 0)) * units.seconds + (units.last if rest == 0 else 0.0)


def calls_seconds(calls: Calls) -> float:
    """Of a judge that nothing else holds up."""
    if not calls.units:
        return 0.0
    return calls.start + (calls.units - 1) * calls.seconds + calls.last + calls.latency


def training_seconds(training: Training) -> float:
    """Without failures."""
    if training.seconds <= 0:
        return training.start + training.load
    checkpoints = max(0, math.ceil(round(training.seconds / training.interval, 9)) - 1)
    return training.start + training.load + training.seconds + checkpoints * training.checkpoint + training.save


def expected_lost_sampling(units: Units, machines: Machines) -> float:
    """Mean seconds of engines spent on units in flight on nodes that failed.

    A unit of u seconds under failures at rate f is begun e^(fu) times in the mean, and takes (e^(fu) - 1) / f seconds of
    attempts, u of which are kept. Failures are memoryless, so that neither when it is begun nor where changes that.
    """
    return (units.number - 1) * _lost(units.seconds, machines.mtbf) + _lost(units.last, machines.mtbf)


def expected_training_seconds(training: Training, machines: Machines) -> float:
    """Mean seconds under failures: (1/f + R) (e^(f s) - 1) for each segment of s seconds, checkpoint included, where R is the
    time to replace a node, start on it and load again, in which nothing fails (Daly 2006, A higher order estimate of the optimum
    checkpoint interval, eq. 13 without its failures during restart)."""
    between = machines.mtbf / training.nodes
    if math.isinf(between):
        return training_seconds(training)
    restart = machines.replace + training.anew
    total, left = training.start + training.load, training.seconds
    while left > 1e-9:
        work = min(training.interval, left)
        segment = work + (training.checkpoint if left > training.interval else training.save)
        total += (between + restart) * math.expm1(segment / between)
        left -= work
    return total


def least_seconds(stages: Sequence[Work], machines: Machines) -> float:
    """Of all stages without failures, spread and overlap: every barrier waited for, every node booted when it is needed."""
    total, there = 0.0, 0
    for work in stages:
        waiting = 0.0
        match work:
            case Preparing():
                total += work.seconds
            case Units():
                total += machines.boot_of(machines.nodes, there) + sampling_seconds(work, machines)
            case Calls():
                total += calls_seconds(work)
                waiting = 0.0 if work.local else calls_seconds(work)
            case Training():
                total += machines.boot_of(work.nodes, there) + training_seconds(work)
        there = machines.held(work, waiting, there)
    return total


def _lost(seconds: float, mtbf: float) -> float:
    if math.isinf(mtbf):
        return 0.0
    return mtbf * math.expm1(seconds / mtbf) - seconds
