"""Multi-layer perceptrons."""

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from secateur.core.errors import SecateurError, nearest
from secateur.core.registry import register
from secateur.core.task import Task
from secateur.models.part import Model
from secateur.models.weights import filled

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def _stack(widths: tuple[int, ...], activation: str) -> OrderedDict[str, nn.Module]:
    """Name the layers linear1, relu1, linear2, ...; no activation after the last."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for at, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        modules[f"linear{at}"] = nn.Linear(inputs, outputs)
        if at < len(widths) - 1:
            modules[f"{activation}{at}"] = _ACTIVATIONS[activation]()
    return modules


@register("model", "mlp")
@dataclass(frozen=True)
class MLP(Model):
    """Linear layers with an activation between them; inputs are flattened first.

    Attributes:
        widths: inputs, hidden layers, outputs.
        activation: ``"relu"``, ``"gelu"`` or ``"tanh"``.
        weights: a file of trained weights; None: drawn at random.
        seed: of the random weights.
    """

    widths: tuple[int, ...]
    activation: str = "relu"
    weights: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the shape of the network.

        Raises:
            SecateurError: there are too few widths, one is not positive, or the activation is unknown.
        """
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise SecateurError(
                f"widths is {list(self.widths)}: give the number of inputs, of each hidden layer, and of "
                "outputs, such as widths = [64, 128, 10]."
            )
        if self.activation not in _ACTIVATIONS:
            raise SecateurError(
                f"there is no activation '{self.activation}': {nearest(self.activation, _ACTIVATIONS)}."
            )

    def build(self, task: Task | None = None) -> nn.Module:
        """Build the network.

        Args:
            task: not used.

        Returns:
            The network; its linear layers are called linear1, linear2, ...
        """
        return filled(self._made, self.weights, self.seed)

    def _made(self) -> nn.Module:
        return nn.Sequential(OrderedDict(flatten=nn.Flatten()) | _stack(self.widths, self.activation))


@register("model", "garment-classifier")
@dataclass(frozen=True)
class GarmentClassifier(Model):
    """The classifier of Fashion-MNIST that iCBS was published with: 784-512-512-10 with ReLU.

    Its inputs are pixels mapped to [-1, 1]. Keys: linear_relu_stack.linear1.weight and so on.

    Attributes:
        weights: a file of trained weights; None: drawn at random.
        seed: of the random weights.
    """

    weights: str | None = None
    seed: int = 0

    def build(self, task: Task | None = None) -> nn.Module:
        """Build the network.

        Args:
            task: not used.

        Returns:
            The network.
        """
        return filled(self._made, self.weights, self.seed)

    def _made(self) -> nn.Module:
        stack = nn.Sequential(_stack((784, 512, 512, 10), "relu"))
        return nn.Sequential(OrderedDict(flatten=nn.Flatten(), linear_relu_stack=stack))
