"""The clock of a run: time goes on over a resume, and some of it is kept back."""

import time

from secateur.core.limit import Limit


class Clock:
    """Counts the seconds of a run against its limit.

    Attributes:
        limit: the bound.
        reserve: seconds kept back for what must still be done at the end.
        began: seconds of the run that were spent before the first step.
    """

    def __init__(self, limit: Limit, elapsed: float = 0.0) -> None:
        """Start the clock.

        Args:
            limit: the bound.
            elapsed: seconds spent before a resume.
        """
        self.limit = limit
        self.reserve = 0.0
        self.began = 0.0
        self._begin = time.monotonic() - elapsed

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, those before a resume included."""
        return time.monotonic() - self._begin

    @property
    def remaining(self) -> float | None:
        """Seconds left for pruning; None without a bound on time."""
        if self.limit.seconds is None:
            return None
        return max(0.0, self.limit.seconds - self.reserve - self.elapsed)

    def lacks(self, seconds: float) -> bool:
        """Say whether a further piece of work does not fit.

        Args:
            seconds: how long it takes.

        Returns:
            True where it would end after the limit.
        """
        remaining = self.remaining
        return remaining is not None and remaining <= seconds

    def progress(self, steps: float) -> float | None:
        """Say what share of the limit pruning has used.

        Args:
            steps: steps done.

        Returns:
            From 0; None without a limit.
        """
        shares = [] if self.limit.steps is None else [steps / self.limit.steps]
        if self.limit.seconds is not None:
            span = self.limit.seconds - self.reserve - self.began
            shares.append((self.elapsed - self.began) / span if span > 0 else 1.0)
        return max(shares, default=None)
