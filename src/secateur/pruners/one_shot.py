"""One-shot pruning: keep the highest scores."""

from dataclasses import dataclass, field, replace

from secateur.core.errors import SecateurError
from secateur.core.registry import register
from secateur.core.score import Score
from secateur.core.signal import Signal
from secateur.pruners.batches import Batches
from secateur.pruners.pruner import Outcome, Pruner, State
from secateur.pruners.session import Session
from secateur.pruners.start import one_shot_state
from secateur.scores import Magnitude


@register("pruner", "one-shot")
@dataclass(frozen=True)
class OneShot(Pruner):
    """Scores the dense network once and keeps the best of each group.

    Attributes:
        score: by what.
        batches: the calibration samples for scores that need any; `size` of them are used.
    """

    score: Score = field(default_factory=Magnitude)
    batches: Batches = field(default_factory=lambda: Batches(guard=0))

    def gradient_samples(self, session: Session) -> int:
        """The batch, for a score that looks at gradients."""
        pool, _ = session.divided(self.batches)
        return self.batches.first_size(pool.numel()) if Signal.GRADIENT in self.score.needs else 0

    def start(self, session: Session) -> State:
        """Draw the mask.

        Args:
            session: what to work with.

        Returns:
            A state with nothing left to do.
        """
        state, _ = one_shot_state(session, self.score, self.batches)
        return replace(state, done=True)

    def step(self, session: Session, state: State) -> tuple[State, Outcome]:
        """Refuse: there is no step after the shot.

        Args:
            session: not used.
            state: not used.

        Raises:
            SecateurError: always.
        """
        raise SecateurError("one-shot pruning has no steps: its start is its result.")
