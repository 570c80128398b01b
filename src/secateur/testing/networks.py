"""Tiny networks with data and a task, one for each way in which a network can be awkward.

All are in float64, so that derivatives can be compared with the truth to many digits, and all
follow from a seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.core.seeds import generator
from secateur.tasks.classification import Classification

CLASSES = 4


@dataclass(frozen=True, eq=False)
class Network:
    """A model and a task that fits it.

    Attributes:
        model: float64, in evaluation mode.
        task: calibration and evaluation samples, disjoint.
    """

    model: nn.Module
    task: Classification


class Shared(nn.Module):
    """Two hidden layers that are one weight, used twice in every pass."""

    def __init__(self, inputs: int = 6, hidden: int = 5) -> None:
        """Build the network.

        Args:
            inputs: features of a sample.
            hidden: width of the shared layer.
        """
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, hidden)
        self.third.weight = self.second.weight
        self.last = nn.Linear(hidden, CLASSES)

    def forward(self, x: Float[Tensor, "s i"]) -> Float[Tensor, "s c"]:
        """Run the network.

        Args:
            x: samples.

        Returns:
            Logits.
        """
        x = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.third(torch.tanh(self.second(x)))))


class Positions(nn.Module):
    """Linear layers applied at each position of a sequence, the mean of which is classified."""

    def __init__(self, inputs: int = 5, hidden: int = 7) -> None:
        """Build the network.

        Args:
            inputs: features of a position.
            hidden: width.
        """
        super().__init__()
        self.up = nn.Linear(inputs, hidden)
        self.down = nn.Linear(hidden, inputs)
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x: Float[Tensor, "s t i"]) -> Float[Tensor, "s c"]:
        """Run the network.

        Args:
            x: samples, each a sequence.

        Returns:
            Logits.
        """
        return self.head((x + self.down(torch.tanh(self.up(x)))).mean(1))


class Dead(nn.Module):
    """A network with a layer that no data reach."""

    def __init__(self, inputs: int = 6, hidden: int = 8) -> None:
        """Build the network.

        Args:
            inputs: features of a sample.
            hidden: width.
        """
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.unused = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, CLASSES)

    def forward(self, x: Float[Tensor, "s i"]) -> Float[Tensor, "s c"]:
        """Run the network.

        Args:
            x: samples.

        Returns:
            Logits.
        """
        return self.last(torch.relu(self.first(x)))


class Auxiliary(Dead):
    """A network with a head that is run, but whose outputs go nowhere."""

    def forward(self, x: Float[Tensor, "s i"]) -> Float[Tensor, "s c"]:
        """Run the network.

        Args:
            x: samples.

        Returns:
            Logits.
        """
        x = torch.relu(self.first(x))
        self.unused(x)
        return self.last(x)


class Backbone(Dead):
    """A network that runs its first layer under torch.no_grad."""

    def forward(self, x: Float[Tensor, "s i"]) -> Float[Tensor, "s c"]:
        """Run the network.

        Args:
            x: samples.

        Returns:
            Logits.
        """
        with torch.no_grad():
            x = torch.relu(self.first(x))
        return self.last(torch.relu(self.unused(x)))


class Keyword(Shared):
    """A network that calls a layer with a keyword."""

    def forward(self, x: Float[Tensor, "s i"]) -> Float[Tensor, "s c"]:
        """Run the network.

        Args:
            x: samples.

        Returns:
            Logits.
        """
        return self.last(torch.tanh(self.second(input=torch.tanh(self.third(torch.tanh(self.first(x)))))))


class SequenceFirst(Positions):
    """Linear layers applied at each position, with the positions before the samples."""

    def forward(self, x: Float[Tensor, "s t i"]) -> Float[Tensor, "s c"]:
        """Run the network.

        Args:
            x: samples, each a sequence.

        Returns:
            Logits.
        """
        x = x.transpose(0, 1)
        return self.head((x + self.down(torch.tanh(self.up(x)))).mean(0))


class Reused(Dead):
    """A network that uses its first weight a second time, transposed and outside its layer."""

    def __init__(self, inputs: int = 6, hidden: int = 8) -> None:
        """Build the network.

        Args:
            inputs: features of a sample.
            hidden: width.
        """
        super().__init__(inputs, hidden)
        self.unused = nn.Linear(inputs, hidden)

    def forward(self, x: Float[Tensor, "s i"]) -> Float[Tensor, "s c"]:
        """Run the network.

        Args:
            x: samples.

        Returns:
            Logits.
        """
        x = nn.functional.linear(torch.tanh(self.first(x)), self.first.weight.T)
        return self.last(torch.tanh(self.unused(x)))


class Caching(Dead):
    """A network that makes a tensor the first time it is run, and keeps it."""

    def forward(self, x: Float[Tensor, "s i"]) -> Float[Tensor, "s c"]:
        """Run the network.

        Args:
            x: samples.

        Returns:
            Logits.
        """
        if not hasattr(self, "scale"):
            self.scale = torch.linspace(0.5, 1.5, self.first.out_features, dtype=x.dtype)
        return self.last(torch.relu(self.unused(torch.tanh(self.first(x)) * self.scale)))


def mlp(seed: int = 0, samples: int = 64) -> Network:
    """Give a perceptron 6-8-7-4 with tanh.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, CLASSES))
    return furnish(model, (6,), seed, samples)


def shared_weight(seed: int = 0, samples: int = 64) -> Network:
    """Give a network in which two modules share a weight.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    return furnish(Shared(), (6,), seed, samples)


def positions(seed: int = 0, samples: int = 64) -> Network:
    """Give a network of sequences [S, 3, 5], whose layers act on each position.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    return furnish(Positions(), (3, 5), seed, samples)


def inplace_relu(seed: int = 0, samples: int = 64) -> Network:
    """Give a perceptron 6-8-7-4 with ReLU(inplace=True), which overwrites the layers' outputs.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 7), nn.ReLU(inplace=True), nn.Linear(7, CLASSES)
    )
    return furnish(model, (6,), seed, samples)


def dead_layer(seed: int = 0, samples: int = 64) -> Network:
    """Give a network with a layer, ``unused``, that no data reach.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    return furnish(Dead(), (6,), seed, samples)


def frozen(seed: int = 0, samples: int = 64) -> Network:
    """Give a perceptron none of whose parameters requires a gradient.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    network = mlp(seed, samples)
    network.model.requires_grad_(False)
    return network


def auxiliary(seed: int = 0, samples: int = 64) -> Network:
    """Give a network with a layer, ``unused``, that is run but does not affect the logits.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    return furnish(Auxiliary(), (6,), seed, samples)


def backbone(seed: int = 0, samples: int = 64) -> Network:
    """Give a network whose layer ``first`` is run under torch.no_grad.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    return furnish(Backbone(), (6,), seed, samples)


def keyword(seed: int = 0, samples: int = 64) -> Network:
    """Give a network whose layer ``second`` is called with a keyword, and shares its weight.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    return furnish(Keyword(), (6,), seed, samples)


def sequence_first(seed: int = 0, samples: int = 64, positions: int = 3) -> Network:
    """Give a network that lays sequences [S, T, 5] out as [T, S, 5] for its layers ``up`` and ``down``.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.
        positions: T.

    Returns:
        The network.
    """
    return furnish(SequenceFirst(), (positions, 5), seed, samples)


def reused(seed: int = 0, samples: int = 64) -> Network:
    """Give a network that uses the weight of ``first`` outside the layer, too.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    return furnish(Reused(), (6,), seed, samples)


def caching(seed: int = 0, samples: int = 64) -> Network:
    """Give a network that keeps a tensor from the first time it is run.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    return furnish(Caching(), (6,), seed, samples)


NETWORKS: dict[str, Callable[..., Network]] = {
    build.__name__: build for build in (mlp, shared_weight, positions, inplace_relu, dead_layer, frozen)
}


def furnish(model: nn.Module, shape: tuple[int, ...], seed: int, samples: int) -> Network:
    """Give a model weights, statistics and data of its own; labels follow from the inputs, with some noise.

    Args:
        model: is changed in place; it gives `CLASSES` logits a sample.
        shape: of one sample.
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network, in float64.
    """
    model = model.double().eval()
    draw = generator(seed, "test network")
    with torch.no_grad():
        for parameter in model.parameters():
            # What one output sums over; of a bias, how many there are.
            fan = parameter[0].numel() if parameter.dim() > 1 else parameter.numel()
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * fan**-0.5)
        for name, tensor in model.state_dict().items():
            # Of batch normalisation: a small variance keeps the signal large.
            scale = {"running_mean": 1.0, "running_var": 0.2}.get(name.rpartition(".")[2])
            if scale is not None:
                tensor.copy_(scale * (0.3 + torch.rand(tensor.shape, generator=draw, dtype=torch.float64)))
    inputs = torch.randn(samples, *shape, generator=draw, dtype=torch.float64)
    teacher = torch.randn(inputs[0].numel(), CLASSES, generator=draw, dtype=torch.float64)
    noise = torch.randn(samples, CLASSES, generator=draw, dtype=torch.float64)
    labels = (inputs.flatten(1) @ teacher + noise).argmax(1)
    return Network(model, Classification.from_arrays(inputs, labels, seed=seed))
