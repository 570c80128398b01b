"""Where every pruner starts: the one-shot mask."""

from torch import Tensor

from secateur.core.score import Score
from secateur.pruners.batches import Batches
from secateur.pruners.pruner import State
from secateur.pruners.session import Session


def one_shot_state(session: Session, score: Score, batches: Batches) -> tuple[State, dict[str, Tensor]]:
    """Draw the one-shot mask, write it to the model, and measure the guard samples.

    Args:
        session: what to work with.
        score: by what.
        batches: where the samples for scores that need any, and the guard, come from.

    Returns:
        The state before the first step, and the scores by layer.
    """
    pool, guard = session.divided(batches)
    size = batches.first_size(pool.numel())
    index, _ = batches.draw(pool, session.seed, (0, 0), size)
    mask, scores = session.one_shot(score, index)
    loss = session.guard_loss(guard)
    return State(mask, mask, mask, samples=size, guard=loss, best_guard=loss), scores
