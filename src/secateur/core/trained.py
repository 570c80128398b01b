"""What a network was before it was pruned, and how to make it that for a while."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from secateur.core.layer import Layer


@dataclass(frozen=True, eq=False)
class Trained:
    """Trained weights and running statistics of a network.

    Attributes:
        weights: by layer, [out, in].
        statistics: those of BatchNorm layers, as pairs of what the model holds and what it was trained to.
    """

    weights: Mapping[str, Tensor]
    statistics: Sequence[tuple[Tensor, Tensor]] = ()

    @contextmanager
    def standing(self, layers: Sequence[Layer]) -> Iterator[None]:
        """Give some layers their trained weights for a while, and all statistics their trained values.

        Memory: a copy of the weights of these layers.

        Args:
            layers: which.

        Yields:
            Nothing; afterwards, also after a failure, everything is as it was, bit for bit.
        """
        weights = [(layer, layer.weight.detach().clone()) for layer in layers]
        statistics = [(held, held.clone()) for held, _ in self.statistics]
        try:
            for layer in layers:
                layer.write(self.weights[layer.name])
            for held, trained in self.statistics:
                held.copy_(trained)
            yield
        finally:
            for layer, now in weights:
                layer.write(now)
            for held, now in statistics:
                held.copy_(now)
