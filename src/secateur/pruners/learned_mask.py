"""Masks learned by gradient descent on scores, through a straight-through estimator."""

from dataclasses import dataclass, field, replace

from secateur.core.registry import register
from secateur.core.score import Score
from secateur.pruners.averaging import Averaging
from secateur.pruners.batches import Batches
from secateur.pruners.pruner import Outcome, Pruner, State
from secateur.pruners.session import Session
from secateur.pruners.start import one_shot_state
from secateur.scores import Magnitude


@register("pruner", "learned-mask")
@dataclass(frozen=True)
class LearnedMask(Pruner):
    """Learns a score for each weight by stochastic gradient descent; the mask keeps the highest.

    The forward pass uses the mask of the highest scores, the backward pass takes the derivative of
    the mask with respect to the scores for 1: ds = -e w0 * dL/dw (a straight-through estimator:
    Bengio et al. 2013, arXiv:1308.3432; for masks of fixed weights Ramanujan et al. 2020,
    arXiv:1911.13299; the movement scores of Sanh et al. 2020, arXiv:2005.07683, with the weights held).
    Momentum, and a rate that falls along a cosine; scores begin at the one-shot scores over their mean in
    each layer. The baseline that `ICBS` must beat: the same machinery, one rate for all layers.

    Attributes:
        init: the score of the first mask, and the first scores.
        averaging: how gradients move the scores.
        guard: samples that no batch contains, by whose loss the best mask is chosen; None = a fifth of
            the data, at most 2,000; 0 = none, and the last mask is returned.
    """

    init: Score = field(default_factory=Magnitude)
    averaging: Averaging = field(default_factory=lambda: Averaging(rate=0.05, forget=0.0, unit="first"))
    guard: int | None = None

    @property
    def _batches(self) -> Batches:
        return Batches(guard=self.guard)

    @property
    def bytes_a_weight(self) -> float:
        """Those of averaging."""
        return self.averaging.bytes_a_weight

    @property
    def distils(self) -> bool:
        """Whether averaging does."""
        return self.averaging.temperature is not None

    def gradient_samples(self, session: Session) -> int:
        """Those of a mini-batch."""
        pool, _ = session.divided(self._batches)
        return self.averaging.size(pool.numel())

    def least_samples(self, session: Session, state: State) -> int:
        """Say how many samples the next stage passes through the model at the least."""
        return self.averaging.least_samples(session, self._batches)

    def start(self, session: Session) -> State:
        """Draw the one-shot mask.

        Args:
            session: what to work with.

        Returns:
            The state before the first stage.
        """
        state, first = one_shot_state(session, self.init, self._batches)
        scores, velocity = self.averaging.begin(session, self._batches, state.mask, first, {})
        return replace(state, scores=scores, velocity=velocity)

    def step(self, session: Session, state: State) -> tuple[State, Outcome]:
        """Run one stage.

        Args:
            session: what to work with.
            state: the state before.

        Returns:
            The state after, and what happened.
        """
        after, outcome = self.averaging.stage(session, state, self._batches)
        # A budget that is spent can be raised; the horizon is all there is.
        unlimited = session.progress(float(after.step)) is None
        return replace(after, done=unlimited and self.averaging.progress(session, after) >= 1), outcome
