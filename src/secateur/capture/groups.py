"""Groups of layers whose inputs are recorded together, in the order in which a model runs them."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from secateur.core.inputs import Inputs, Latest
from secateur.core.layer import Layer


@dataclass
class Order:
    """What a pass of one sample tells: when layers and decoder layers run, and which have the same inputs.

    Attributes:
        places: when each layer, by name, and each decoder layer, by number, first ran.
        sources: when the first of the layers ran that were given the same inputs as a layer was at first.
        calls: how often each layer ran.
    """

    places: dict[str | int, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    _latest: Latest[int] = field(default_factory=Latest)

    def reach(self, number: int) -> None:
        """Note that a decoder layer runs.

        Args:
            number: of the decoder layer.
        """
        self.places.setdefault(number, len(self.places))

    def hear(self, name: str, inputs: Inputs) -> None:
        """Note that a layer runs.

        Args:
            name: the layer.
            inputs: that it is given.
        """
        self.calls[name] += 1
        place = self.places.setdefault(name, len(self.places))
        self.sources.setdefault(name, self._latest.of(inputs, lambda: place))

    def of(self, layer: Layer) -> int:
        """Say when a layer runs.

        Args:
            layer: the layer.

        Returns:
            Its place; behind all others where it was not reached.
        """
        return self.places.get(layer.name, len(self.places))


def owners(layers: Sequence[Layer], stack: Sequence[nn.Module]) -> dict[str, int | None] | None:
    """Say to which decoder layer each layer belongs.

    Args:
        layers: the layers.
        stack: the decoder layers.

    Returns:
        The number by layer, None where it is used outside the stack; nothing where a weight is shared between
        decoder layers, or with what is outside, so that they cannot be gone through one after the other.
    """
    holders: dict[int, set[int]] = defaultdict(set)
    for at, element in enumerate(stack):
        for part in element.modules():
            holders[id(part)].add(at)
    found: dict[str, int | None] = {}
    for layer in layers:
        used = [holders.get(id(module), set()) for module in layer.modules]
        mine = set().union(*used)
        if mine and not (len(mine) == 1 and all(used)):
            return None
        found[layer.name] = next(iter(mine), None)
    return found


def grouped(
    layers: Sequence[Layer], owner: Mapping[str, int | None], order: Order
) -> list[tuple[int | None, list[Layer]]]:
    """Put the layers of each decoder layer together, in the order in which they run.

    Args:
        layers: the layers.
        owner: the decoder layer of each.
        order: when they run.

    Returns:
        The number of the decoder layer, None for a layer by itself, and the layers of each group.
    """
    groups: dict[str | int, tuple[int | None, list[Layer]]] = {}
    for layer in layers:
        at = owner[layer.name]
        groups.setdefault(layer.name if at is None else at, (at, []))[1].append(layer)
    never = len(order.places)
    keyed = sorted(groups.items(), key=lambda item: order.places.get(item[0], never))
    return [group for _, group in keyed]


def by_inputs(group: Sequence[Layer], order: Order) -> list[list[Layer]]:
    """Divide a group into layers with the same inputs, in the order in which they run.

    Args:
        group: the layers.
        order: when they run; of the experts of one parameter the first that ran counts for all.

    Returns:
        The parts. Experts of one parameter are one part.
    """
    first: dict[int, int] = {}
    for layer in group:
        if layer.slot is not None:
            key = id(layer.parameter)
            first[key] = min(first.get(key, len(order.places)), order.of(layer))
    parts: dict[tuple[int, int], list[Layer]] = {}
    for layer in group:
        if layer.slot is not None:
            place = (first[id(layer.parameter)], id(layer.parameter))
        else:
            place = (order.sources.get(layer.name, len(order.places)), 0)
        parts.setdefault(place, []).append(layer)
    return [parts[place] for place in sorted(parts)]


def divided(group: Sequence[Layer], limit: int | None, matrices: int) -> Iterator[list[Layer]]:
    """Cut a group where its Gram matrices would exceed a bound.

    Args:
        group: the layers.
        limit: bytes; None: no bound.
        matrices: how many there are of each layer.

    Yields:
        The pieces, of one layer at the least.
    """
    part: list[Layer] = []
    held = 0
    for layer in group:
        size = matrices * layer.gram_bytes
        if part and limit is not None and held + size > limit:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    yield part
