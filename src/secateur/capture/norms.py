"""What normalising layers are given, pooled over any number of passes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Pool:
    """The mean and the variance of everything that was added, by channel, exact whatever the parts were.

    Parts are joined by sums of squared deviations (Chan, Golub and LeVeque 1983), in float64.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.count = 0
        self._mean: Any = 0.0
        self._spread: Any = 0.0

    def add(self, x: Float[Tensor, "s c ..."]) -> None:
        """Add values: n = n1 + n2, m = m1 + d n2 / n and S = S1 + S2 + d^2 n1 n2 / n, with d = m2 - m1.

        Args:
            x: samples, channels and, as the case may be, positions.
        """
        count = x.numel() // max(1, x.shape[1])
        if count == 0:
            return
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        spread, mean = torch.var_mean(wide, (0, *range(2, x.dim())), correction=0)
        total, shift = self.count + count, mean.double() - self._mean
        self._spread = self._spread + spread.double() * count + shift.square() * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total

    @property
    def mean(self) -> Float[Tensor, " c"]:
        """The mean of each channel."""
        return self._mean

    @property
    def variance(self) -> Float[Tensor, " c"]:
        """The unbiased variance of each channel; 0 of a single value."""
        return self._spread / max(1, self.count - 1)


@contextmanager
def before(norms: Sequence[nn.Module], hear: Callable[[int, Tensor], Any]) -> Iterator[None]:
    """Have a function called whenever one of some layers is about to work on an input.

    Args:
        norms: the layers.
        hear: called with the layer's number and its input.

    Yields:
        Nothing; afterwards nothing is called.
    """
    handles = []
    try:
        for at, norm in enumerate(norms):
            handles.append(norm.register_forward_pre_hook(partial(_tell, hear, at), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tell(
    hear: Callable[[int, Tensor], Any], at: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Pass the input of a layer on; None, so that the layer goes on with it."""
    hear(at, args[0] if args else kwargs["input"])
