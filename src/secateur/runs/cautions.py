"""What a user would want to know before looking at the figures of a run."""

from collections.abc import Iterator

from torch.nn.modules.batchnorm import _BatchNorm

from secateur.pruners import Session
from secateur.runs.memory import Needs

STARTED_ONLY = (
    "not one step fitted into the budget, so that this is the one-shot mask it starts from: give more time."
)
FINISHED = (
    "the run had come to its end and no time or step is left: what it found stays as it is; give a larger "
    "--budget to go on with it."
)
COUNTS_ONLY = (
    "the refit chooses anew which weights are kept, and takes little more than the counts from the mask "
    "before it, which the allocation gives already: have that mask drawn in one shot (--pruner one-shot) and "
    "leave the time to the refit, or let the layers compete (--allocation global)."
)
OTHER_MASK = (
    "the statistics of BatchNorm are estimated for the mask before the refit, which then chooses another: "
    "leave recalibrate out."
)
NO_STATISTICS = (
    "nothing is recalibrated, as the model has no BatchNorm layer with running statistics (frozen ones stay "
    "as they are): leave recalibrate out."
)


def cautions(session: Session, density: float, needs: Needs | None, compiling: float) -> Iterator[str]:
    """Say what there is to know before a run.

    Args:
        session: what the pruner works with.
        density: what was asked for.
        needs: memory, where it was foreseen.
        compiling: seconds that took.

    Yields:
        Sentences.
    """
    network = session.network
    yield from session.task.remarks
    if not session.task.disjoint:
        yield (
            "calibration and evaluation share samples: the reported numbers flatter the mask; "
            "give separate evaluation data."
        )
    total = sum(layer.size for layer in network.layers)
    kept = int(session.budget.kept.sum())
    if abs(kept - density * total) > max(1.0, 0.001 * total):
        yield (
            f"rounding to whole weights in each {session.budget.grouping} group makes the density "
            f"{kept / total:.4g} instead of {density:.4g}."
        )
    if needs is not None:
        yield needs.sentence
    unsteady = [
        n for n, m in network.model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is None
    ]
    if unsteady:
        yield (
            f"'{unsteady[0]}' normalises by the batch at hand (track_running_stats=False), so that losses "
            "depend on which samples pass together."
        )
    others = network.other_weights()
    if others:
        share = sum(others.values()) / (total + sum(others.values()))
        yield (
            f"{share:.0%} of the weights stay dense, as they are in no layer that is "
            f"pruned: {', '.join(list(others)[:3])}{' and others' if len(others) > 3 else ''}."
        )
    if compiling > 1:
        yield (
            f"compiling the solver took {compiling:.1f} s, which the budget does not count; "
            "it is done once on a machine."
        )
