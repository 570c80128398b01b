"""How far one linearisation is trusted."""

from dataclasses import dataclass, replace

from secateur.core.errors import SecateurError


@dataclass(frozen=True)
class Region:
    """The region in force.

    Attributes:
        ridge: nats per squared unit of weight, for each flipped weight.
        flips: weights that one stage may flip.
    """

    ridge: float
    flips: int


@dataclass(frozen=True)
class Trust:
    """Ridge and number of flips, set by predicted against measured change.

    With rho = measured / predicted change of the batch's mean loss: rho < `poor` shrinks the
    region, rho > `good` widens it, a stage that moved nothing lowers the ridge, and a stage
    whose measured change is not a decrease is undone (Levenberg 1944; Marquardt 1963; Conn,
    Gould and Toint 2000). With `adapt` off the ridge stays, nothing limits the flips, and every
    step is kept, as published.

    Attributes:
        ridge: the first ridge, nats per squared unit of weight, >= 0.
        fraction: of the prunable weights that the first stage may flip, in (0, 1].
        adapt: whether to judge at all.
        poor: rho below which the region shrinks.
        good: rho above which it widens.

    Raises:
        SecateurError: a number out of range.
    """

    ridge: float = 1e-3
    fraction: float = 0.02
    adapt: bool = True
    poor: float = 0.3
    good: float = 0.7

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.ridge < 0:
            raise SecateurError(f"the ridge cannot be negative: {self.ridge}.")
        if not 0 < self.fraction <= 1:
            raise SecateurError(f"the trust fraction must lie in (0, 1], not {self.fraction}.")
        if not 0 <= self.poor < self.good:
            raise SecateurError(f"trust needs 0 <= poor < good, not poor={self.poor}, good={self.good}.")

    def start(self, weights: int) -> Region:
        """Give the first region.

        Args:
            weights: prunable weights of the network.

        Returns:
            The region.
        """
        return Region(self.ridge, max(2, int(self.fraction * weights)) if self.adapt else weights)

    def accepts(self, measured: float) -> bool:
        """Say whether a stage is kept.

        Args:
            measured: change of the batch's mean loss, nats.

        Returns:
            True where it is.
        """
        return not self.adapt or measured < 0

    def judge(self, region: Region, predicted: float, measured: float, flips: int) -> Region:
        """Give the region for the next stage.

        Args:
            region: the region in force.
            predicted: predicted change, nats; negative.
            measured: measured change, nats.
            flips: weights the stage flipped.

        Returns:
            The region, shrunk or widened.
        """
        if not self.adapt:
            return region
        if flips == 0:  # nothing pays under this ridge
            return replace(region, ridge=region.ridge / 10)
        rho = measured / predicted if predicted < 0 else -1.0
        if not rho > 0:
            return Region(max(region.ridge, 1e-12) * 4, max(2, flips // 4))
        if rho < self.poor:
            return Region(max(region.ridge, 1e-12) * 2, max(2, flips // 2))
        if rho > self.good:
            return replace(region, ridge=region.ridge / 2, flips=region.flips * 2)
        return region
