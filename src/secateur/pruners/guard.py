"""What the guard samples, which are in no batch, say of a mask."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from secateur.core.mask import Mask
from secateur.pruners.pruner import State

# A stage after which the guard's loss is so many times what it was went too far.
_ROSE = 1.05
# The fraction of a batch's gain that the guard samples must show, or batches grow.
_CARRY = 0.5


def judged(state: State, mask: Mask, held: Float[Tensor, " g"] | None) -> State:
    """Take a mask for the best unless the guard samples speak against it; halve the rate where they must.

    The rate falls, so that of masks that the guard samples cannot tell apart the latest is the best
    bet: it replaces the best one unless its loss is more than a standard error of the paired
    differences above the lowest there was (after the one-standard-error rule of Breiman et al. 1984,
    with the latest for the simplest). The lowest of many noisy losses would be a lucky one. The rate is
    halved where the loss rose by more than 5 % in one stage, and is above the lowest by more than two
    standard errors.

    Args:
        state: the state before the stage.
        mask: what the stage ended with.
        held: the losses of the guard samples under it, nats; None without any.

    Returns:
        The state, with the best mask, the losses and the rate brought up to date.
    """
    if held is None:
        return replace(state, best=mask, guard=None, best_guard=None)
    loss, lowest = float(held.mean()), state.lowest.get("guard")
    if lowest is None:
        lower = better = state.best_guard is None or loss < state.best_guard
        surely = True
    else:
        excess, error = paired(held, lowest)
        lower, better, surely = excess < 0, excess <= error, excess > 2 * error
    rose = surely and state.guard is not None and loss > _ROSE * state.guard
    return replace(
        state,
        best=mask if better else state.best,
        best_guard=loss if better else state.best_guard,
        lowest={"guard": held} if lower else state.lowest,
        guard=loss,
        rate_factor=state.rate_factor / 2 if rose else state.rate_factor,
    )


def paired(held: Float[Tensor, " g"], other: Float[Tensor, " g"]) -> tuple[float, float]:
    """Compare the losses of the same samples under two masks, or two sets of weights.

    Args:
        held: nats, under the one.
        other: nats, under the other.

    Returns:
        The mean of their differences, and its standard error; 0 of one sample, which tells none.
    """
    excess = held - other
    error = float(excess.std()) / excess.numel() ** 0.5 if excess.numel() > 1 else 0.0
    return float(excess.mean()), error


def compared(before: State, after: State, gain: float | None, loss: float | None, grown: int) -> State:
    """Keep the best mask by guard loss, and let a batch grow whose gain the guard samples do not share.

    Args:
        before: the state before a stage of blocks.
        after: the state after it.
        gain: the measured change of a stage that moved and was kept, nats; None for any other.
        loss: the mean loss of the guard samples after it, nats; None without any.
        grown: samples of the next larger batch.

    Returns:
        The state after, with the best mask, the size of the next batch, and the stages in a row that
        found neither a better mask nor a larger batch.
    """
    if loss is None or before.guard is None or before.best_guard is None:
        better, samples, best_guard = gain is not None, before.samples, None
    else:
        better = gain is not None and loss < before.best_guard
        best_guard = loss if better else before.best_guard
        carried = gain is None or loss - before.guard < _CARRY * gain
        samples = before.samples if carried else grown
    return replace(
        after,
        guard=loss,
        samples=samples,
        best=after.mask if better or best_guard is None else before.best,
        best_guard=best_guard,
        stall=0 if better or samples > before.samples else before.stall + 1,
    )
