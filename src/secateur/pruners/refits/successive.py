"""Refits one after the other, judged together."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.mask import Mask
from secateur.core.registry import register
from secateur.core.task import Task
from secateur.pruners.batches import Batches
from secateur.pruners.guard import paired
from secateur.pruners.network import Network
from secateur.pruners.refit import Refit
from secateur.pruners.refits.gradient_steps import GradientSteps
from secateur.pruners.refits.least_squares import LeastSquares
from secateur.pruners.session import Session


@register("refit", "successive")
@dataclass(frozen=True)
class Successive(Refit):
    """One refit, then another from where the first one ends; of the stops on the way the best is taken.

    Least squares of the layers' outputs (`LeastSquares`; `ADMM`, which also chooses the mask for them) need
    few samples and fit none of them by heart, but know nothing of the loss; steps down the loss do, but have
    nothing to go by where the mask fits the samples already. So the second goes on from the first even where
    that raised the loss, and the loss of the guard samples decides in the end between mask and weights as
    they were, the first refit, and both. The second is taken where its loss is below the first's by more than
    two standard errors of the paired differences: steps end at the lowest of many noisy losses.

    Attributes:
        first: a refit; one of this kind makes three of two.
        second: what follows on it.
        batches: says how many guard samples are held back: as many as the pruner held back, or it has seen
            them.

    Raises:
        SecateurError: no samples are held back to judge by, or the refits leave no time for the mask.
    """

    first: Refit = field(default_factory=LeastSquares)
    second: Refit = field(default_factory=GradientSteps)
    batches: Batches = field(default_factory=Batches)

    def __post_init__(self) -> None:
        """Check that there is something to judge by, and time."""
        if self.batches.guard == 0:
            raise SecateurError("a successive refit is judged by guard samples: guard must not be 0.")
        if not self.share < 1:
            raise SecateurError(
                f"the refits hold back {self.share:.0%} of the budget, which leaves none for the mask: lower "
                "the time of one."
            )

    @property
    def share(self) -> float:
        """What part of a budget of seconds is held back: for both."""
        return self.first.share + self.second.share

    @property
    def bytes_a_weight(self) -> float:
        """What the larger keeps, and the weights before it."""
        return 4.0 + max(self.first.bytes_a_weight, self.second.bytes_a_weight)

    def check(self, network: Network, task: Task) -> None:
        """Have both look at it."""
        self.first.check(network, task)
        self.second.check(network, task)

    def warm_up(self) -> None:
        """Have both do so."""
        self.first.warm_up()
        self.second.warm_up()

    @property
    def chooses(self) -> bool:
        """Whether one of them does."""
        return self.first.chooses or self.second.chooses

    @property
    def distils(self) -> bool:
        """Whether one of them does."""
        return self.first.distils or self.second.distils

    def gradient_samples(self, session: Session) -> int:
        """Those of the larger."""
        return max(self.first.gradient_samples(session), self.second.gradient_samples(session))

    def records(self, session: Session, *, least: bool) -> int:
        """Those of the larger."""
        return max(refit.records(session, least=least) for refit in (self.first, self.second))

    def __call__(
        self, session: Session, mask: Mask, weights: Mapping[str, Tensor]
    ) -> tuple[Mask, dict[str, Tensor]]:
        """Refit twice, and judge each stop on the way."""
        _, guard = session.divided(self.batches)
        now, first = dict(weights), session.losses(guard)
        best, lowest = (mask, now), first
        for refit, later in ((self.first, self.second.share / (self.share or 1.0)), (self.second, 0.0)):
            with session.leaving(later):
                mask, found = refit(session, mask, now)
            now = {**now, **found}
            session.network.write(mask, now)
            held = session.losses(guard)
            excess, error = paired(held, lowest)
            if excess < (0.0 if lowest is first else -2 * error):
                best, lowest = (mask, now), held
        session.network.write(*best)
        if lowest is first:
            session.notice(
                "the successive refits were undone, as neither lowered the loss of the guard samples "
                f"({float(first.mean()):.4f} before, {float(held.mean()):.4f} after): give more time or more "
                "calibration samples."
            )
        return best
