"""Tiny convolutional networks with data and a task, one for each way in which one can be awkward."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.testing.networks import CLASSES, Network, furnish


class Pooled(nn.Module):
    """Any layers, the mean over all positions of what they give, and a linear layer."""

    def __init__(self, channels: int, *layers: nn.Module) -> None:
        """Build the network.

        Args:
            channels: that the layers give.
            layers: in the order in which they act.
        """
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Float[Tensor, "s i *positions"]) -> Float[Tensor, "s c"]:
        """Run the network.

        Args:
            x: samples.

        Returns:
            Logits.
        """
        return self.head(self.layers(x).flatten(2).mean(2))


class TwoScales(nn.Module):
    """A convolution used twice in every pass: on feature maps, and on the same at half their size."""

    def __init__(self, inputs: int = 2, channels: int = 3) -> None:
        """Build the network.

        Args:
            inputs: channels of a picture.
            channels: of the feature maps.
        """
        super().__init__()
        self.stem = nn.Conv2d(inputs, channels, 3, padding=1)
        self.shared = nn.Conv2d(channels, channels, 3)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Float[Tensor, "s i h w"]) -> Float[Tensor, "s c"]:
        """Run the network.

        Args:
            x: pictures.

        Returns:
            Logits.
        """
        x = torch.tanh(self.stem(x))
        scales = (x, nn.functional.avg_pool2d(x, 2))
        return self.head(sum(torch.tanh(self.shared(scale)).mean((2, 3)) for scale in scales))


def batch_normed(seed: int = 0, samples: int = 32) -> Network:
    """Give a network of pictures [S, 2, 7, 6]: stride, padding, depthwise and grouped, with BatchNorm.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    model = Pooled(
        6,
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4), nn.Tanh(),
        nn.Conv2d(4, 6, 1, groups=2), nn.Tanh(),
    )  # fmt: skip
    return furnish(model, (2, 7, 6), seed, samples)


def padding_modes(seed: int = 0, samples: int = 32) -> Network:
    """Give a network of pictures [S, 2, 6, 7], padded by their reflection, their edge and their other side.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    model = Pooled(
        3,
        nn.Conv2d(2, 3, (3, 2), padding=(2, 1), padding_mode="reflect"), nn.Tanh(),
        nn.Conv2d(3, 3, (2, 3), padding="same", dilation=(2, 1), padding_mode="replicate"), nn.Tanh(),
        nn.Conv2d(3, 3, 3, stride=(2, 3), padding=1, padding_mode="circular"), nn.Tanh(),
    )  # fmt: skip
    return furnish(model, (2, 6, 7), seed, samples)


def two_scales(seed: int = 0, samples: int = 32) -> Network:
    """Give a network of pictures [S, 2, 8, 8] whose layer ``shared`` is used on two sizes of them.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    return furnish(TwoScales(), (2, 8, 8), seed, samples)


def signals(seed: int = 0, samples: int = 32) -> Network:
    """Give a network of signals [S, 2, 11]: Conv1d with stride, dilation, padding and groups.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    model = Pooled(
        4,
        nn.Conv1d(2, 4, 3, stride=2, padding=2), nn.Tanh(),
        nn.Conv1d(4, 4, 2, dilation=2, padding="same", groups=2), nn.Tanh(),
    )  # fmt: skip
    return furnish(model, (2, 11), seed, samples)


def volumes(seed: int = 0, samples: int = 32) -> Network:
    """Give a network of volumes [S, 2, 4, 5, 3]: Conv3d with stride, dilation, padding and groups.

    Args:
        seed: of weights and data.
        samples: in all; a fifth evaluates.

    Returns:
        The network.
    """
    model = Pooled(
        4,
        nn.Conv3d(2, 4, (2, 3, 1), stride=(1, 2, 1), padding=(1, 1, 0)), nn.BatchNorm3d(4), nn.Tanh(),
        nn.Conv3d(4, 4, 2, dilation=(2, 1, 1), groups=4), nn.Tanh(),
    )  # fmt: skip
    return furnish(model, (2, 4, 5, 3), seed, samples)


CONVOLUTIONS: dict[str, Callable[..., Network]] = {
    build.__name__: build for build in (batch_normed, padding_modes, two_scales, signals, volumes)
}
