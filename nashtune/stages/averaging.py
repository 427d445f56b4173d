"""Line 9 of Algorithm 2: what the loop gives back, which may be the mean of its iterates' weights."""

from __future__ import annotations

import shutil

from nashtune.records import IterationSummary
from nashtune.run import Run
from nashtune.stages.export import export, exported_row
from nashtune.stages.validation import validate
from nashtune.stages.work import engine_of, policy_of
from nashtune.summaries import AVERAGE


def conclude(run: Run) -> IterationSummary | None:
    """Export what the recipe's ``average`` names, and return its row: of the best iteration, the last, or the average of all
    iterations' weights, which is made and validated first. Does nothing that is done already."""
    if run.recipe.average == "weights" and run.averaged() is None:
        average(run)
    export(run)
    return exported_row(run)


def average(run: Run) -> IterationSummary:
    """Average the weights of pi_1 ... pi_T and validate the policy; an average of other iterations makes room."""
    from nashtune.model.averaging import average_policies
    from nashtune.model.loading import fingerprint

    iterations = list(run.iterations())
    policies = [policy_of(run, t) for t in iterations]
    fingerprints = [policy.fingerprint for policy in policies]
    stage, folder = run.stage(AVERAGE, "weights"), run.iteration_folder(AVERAGE)
    if stage.file.exists() and stage.record()["inputs"] != [fingerprints]:
        for place in (folder, *run.folder.glob("evaluations/*/average")):
            shutil.rmtree(place)
    if not stage.done(fingerprints):
        engine_of(run).release()
        with stage.clock():
            average_policies(policies, folder / "policy")
        stage.finish((fingerprints,), {"iterations": iterations}, fingerprint(folder / "policy"))
    return validate(run, AVERAGE)
