"""Moments of several layers, added up while a model runs."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from secateur.core.errors import SecateurError
from secateur.core.inputs import Inputs, Latest
from secateur.core.layer import Layer, unreached
from secateur.core.moments import Moments


@dataclass
class Sums:
    """Moments of layers; those of layers that get the same tensors are made once, and are one object.

    Attributes:
        gram: whether products of different inputs are wanted.
        wanted: names of the layers.
        found: what has been added up so far, by layer.
        trained: inputs that the trained network gives each layer in the calls to come, in their order; those
            of a layer that is not there are not multiplied with.
    """

    gram: bool
    wanted: set[str]
    found: dict[str, Moments] = field(default_factory=dict)
    trained: dict[str, deque[Inputs]] = field(default_factory=dict)
    _latest: Latest[Moments] = field(default_factory=Latest)
    _sum: tuple[Moments, Moments, Moments] | None = None

    def add(self, name: str, inputs: Inputs) -> None:
        """Add the inputs that a layer gets, if it is wanted.

        Args:
            name: the layer.
            inputs: of one call.
        """
        if name not in self.wanted:
            return
        calls = self.trained.get(name)
        trained = calls.popleft() if calls else None
        new = self._latest.of(inputs, lambda: inputs.moments(self.gram, trained))
        old = self.found.get(name)
        if old is None:
            self.found[name] = new
            return
        if self._sum is None or self._sum[0] is not old or self._sum[1] is not new:
            self._sum = (old, new, old + new)
        self.found[name] = self._sum[2]

    def close(self, group: Sequence[Layer]) -> dict[str, Moments]:
        """Give the moments of each layer.

        Args:
            group: the layers that are wanted.

        Returns:
            The moments by layer; those of an expert that no position came to are 0.

        Raises:
            SecateurError: a layer that is no expert, or all experts of a parameter, were never reached; or a
                layer has inputs that are not finite.
        """
        unheard = self._unheard(group)
        for layer in group:
            sums = self.found.get(layer.name)
            if sums is None and (layer.slot is None or id(layer.parameter) in unheard):
                pattern = layer.name if layer.slot is None else f"{layer.parameter_name}.*"
                raise SecateurError(unreached(layer, pattern))
            if sums is not None and not bool(torch.isfinite(sums.squares).all()):
                raise SecateurError(
                    f"the inputs of layer '{layer.name}' are NaN, infinite or too large to be squared: check "
                    "the calibration data and the weights before it."
                )
        return {
            layer.name: self.found.get(layer.name) or Moments.of(layer.weight.detach()[:0], self.gram)
            for layer in group
        }

    def _unheard(self, group: Sequence[Layer]) -> set[int]:
        """Find the parameters of which no expert has inputs: their products are not what is listened to."""
        silent = Counter(id(x.parameter) for x in group if x.slot is not None and x.name not in self.found)
        return {id(x.parameter) for x in group if silent[id(x.parameter)] == len(x.parameter)}
