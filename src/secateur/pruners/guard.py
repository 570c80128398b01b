"""What the guard samples, which are in no batch, say of a mask."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from secateur.core.mask import Mask
from secateur.pruners.pruner import State

# A stage after which the guard's loss is so many times what it was went too far.
_ROSE = 1.05


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
        excess = held - lowest
        error = float(excess.std()) / excess.numel() ** 0.5 if excess.numel() > 1 else 0.0
        lower, better = float(excess.mean()) < 0, float(excess.mean()) <= error
        surely = float(excess.mean()) > 2 * error
    rose = surely and state.guard is not None and loss > _ROSE * state.guard
    return replace(
        state,
        best=mask if better else state.best,
        best_guard=loss if better else state.best_guard,
        lowest={"guard": held} if lower else state.lowest,
        guard=loss,
        rate_factor=state.rate_factor / 2 if rose else state.rate_factor,
    )
