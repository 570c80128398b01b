"""A small convolutional network."""

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.registry import register
from secateur.core.task import Task
from secateur.models.part import Model
from secateur.models.weights import filled


def _stage(inputs: int, outputs: int, stride: int, *, depthwise: bool) -> nn.Sequential:
    """Chain a 3 x 3 convolution and, where asked for, one that filters each channel by itself."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    parts["norm"] = nn.BatchNorm2d(outputs)
    parts["relu"] = nn.ReLU()
    if depthwise:
        parts["depthwise"] = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs, bias=False)
        parts["depthwise_norm"] = nn.BatchNorm2d(outputs)
        parts["depthwise_relu"] = nn.ReLU()
    return nn.Sequential(parts)


@register("model", "cnn")
@dataclass(frozen=True)
class CNN(Model):
    """Stages of convolutions with batch normalisation, the mean over all pixels, and a linear layer.

    Every stage but the first halves height and width. Layers are called stage1.conv, stage1.depthwise,
    stage2.conv, ..., linear. Pictures may have any size.

    Attributes:
        channels: of the pictures: 1 (grey) or 3 (colour).
        widths: channels of each stage.
        classes: outputs.
        depthwise: end each stage with a convolution that filters each channel by itself.
        weights: a file of trained weights; None: drawn at random.
        seed: of the random weights.
    """

    channels: int = 1
    widths: tuple[int, ...] = (16, 32, 64)
    classes: int = 10
    depthwise: bool = True
    weights: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the shape of the network.

        Raises:
            SecateurError: there are no stages, or a number is not positive.
        """
        if not self.widths or min(self.widths) < 1:
            raise SecateurError(
                f"widths is {list(self.widths)}: give the channels of each stage, such as widths = [16, 32]."
            )
        if min(self.channels, self.classes) < 1:
            raise SecateurError(
                f"channels is {self.channels} and classes {self.classes}: both must be at least 1."
            )

    def build(self, task: Task | None = None) -> nn.Module:
        """Build the network.

        Args:
            task: not used.

        Returns:
            The network.
        """
        return filled(self._made, self.weights, self.seed)

    def _made(self) -> nn.Module:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for at, width in enumerate(self.widths, start=1):
            inputs, stride = (self.channels, 1) if at == 1 else (self.widths[at - 2], 2)
            parts[f"stage{at}"] = _stage(inputs, width, stride, depthwise=self.depthwise)
        parts["pool"] = nn.AdaptiveAvgPool2d(1)
        parts["flatten"] = nn.Flatten()
        parts["linear"] = nn.Linear(self.widths[-1], self.classes)
        return nn.Sequential(parts)
