"""The residual networks of CIFAR-10."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from secateur.core.errors import SecateurError
from secateur.core.registry import register
from secateur.core.task import Task
from secateur.models.part import Model
from secateur.models.weights import filled

_WIDTHS = (16, 32, 64)


class Residual(nn.Module):
    """Two convolutions beside a shortcut: y = relu(x' + bn2(conv2(relu(bn1(conv1(x)))))).

    The shortcut x' has no weights (option A of the paper): every stride-th pixel of x, with channels of
    zeros around its own, half of them before and half behind.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the block.

        Args:
            inputs: channels.
            outputs: channels, at least as many.
            stride: of the first convolution.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        before = (outputs - inputs) // 2
        self.padding = (before, outputs - inputs - before)

    def forward(self, x: Float[Tensor, "s c h w"]) -> Float[Tensor, "s d y x"]:
        """Run the block.

        Args:
            x: feature maps.

        Returns:
            Feature maps.
        """
        shortcut = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))
        return relu(shortcut + self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))


class ResidualNetwork(nn.Module):
    """A convolution, three stages of residual blocks, the mean over all pixels, and a linear layer."""

    def __init__(self, blocks: int, classes: int) -> None:
        """Build the network.

        Args:
            blocks: in each stage.
            classes: outputs.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = self._stage(_WIDTHS[0], _WIDTHS[0], blocks, 1)
        self.layer2 = self._stage(_WIDTHS[0], _WIDTHS[1], blocks, 2)
        self.layer3 = self._stage(_WIDTHS[1], _WIDTHS[2], blocks, 2)
        self.linear = nn.Linear(_WIDTHS[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        """Chain blocks, the first of which changes the size."""
        return nn.Sequential(
            Residual(inputs, outputs, stride), *(Residual(outputs, outputs, 1) for _ in range(blocks - 1))
        )

    def forward(self, x: Float[Tensor, "s 3 h w"]) -> Float[Tensor, "s c"]:
        """Run the network.

        Args:
            x: pictures.

        Returns:
            Logits.
        """
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


@register("model", "cifar-resnet")
@dataclass(frozen=True)
class CifarResNet(Model):
    """A residual network for pictures of 32 x 32 pixels in colour: 6n + 2 layers of 16, 32 and 64 channels.

    He, Zhang, Ren and Sun 2015, arXiv:1512.03385, section 4.2, with shortcuts of option A. Weights are
    drawn as in He et al. 2015, arXiv:1502.01852. Where a shortcut has more channels than its input, the
    paper does not say which are zero: here half of them come first, as in the trained weights that are
    about. Keys: conv1.weight, bn1.weight, layer1.0.conv1.weight, ..., linear.weight.

    Attributes:
        depth: layers: 20, 32, 44, 56, 110 or another 6n + 2.
        classes: outputs.
        weights: a file of trained weights; None: drawn at random.
        seed: of the random weights.
    """

    depth: int = 20
    classes: int = 10
    weights: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the shape of the network.

        Raises:
            SecateurError: the depth is not 6n + 2, or there are no classes.
        """
        if self.depth < 8 or self.depth % 6 != 2:
            raise SecateurError(
                f"depth is {self.depth}, but these networks have 6n + 2 layers: give 20, 32, 44, 56 or 110."
            )
        if self.classes < 1:
            raise SecateurError(f"classes is {self.classes}: give the number of outputs, such as 10.")

    def build(self, task: Task | None = None) -> nn.Module:
        """Build the network.

        Args:
            task: not used.

        Returns:
            The network.
        """
        return filled(lambda: ResidualNetwork((self.depth - 2) // 6, self.classes), self.weights, self.seed)
