"""A small vision transformer."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from secateur.core.errors import SecateurError
from secateur.core.registry import register
from secateur.core.task import Task
from secateur.models.part import Model
from secateur.models.weights import filled

# Of random positions: as large as the patches, so that a short training tells them apart.
_DEVIATION = 0.5


class Attention(nn.Module):
    """Every token looks at every other: softmax(q k' / sqrt(d)) v for each head, then a projection."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the layers.

        Args:
            width: features of a token.
            heads: a divisor of the width.
        """
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "s t d"]) -> Float[Tensor, "s t d"]:
        """Run the layers.

        Args:
            x: tokens.

        Returns:
            Tokens.
        """
        # Written out, as modules that fuse these products pass by the layers they own.
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        share = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return self.projection((share @ v).transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention and a perceptron, each behind a normalisation and beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """Build the layers.

        Args:
            width: features of a token.
            heads: of the attention.
            hidden: width of the perceptron.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "s t d"]) -> Float[Tensor, "s t d"]:
        """Run the layers.

        Args:
            x: tokens.

        Returns:
            Tokens.
        """
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches as tokens, a token for the class before them, and a linear layer on what becomes of it."""

    def __init__(self, part: "ViT") -> None:
        """Build the network.

        Args:
            part: says which.
        """
        super().__init__()
        height, width = part.size
        tokens = 1 + (height // part.patch) * (width // part.patch)
        self.patches = nn.Conv2d(part.channels, part.width, part.patch, part.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, part.width))
        self.positions = nn.Parameter(torch.zeros(1, tokens, part.width))
        self.blocks = nn.Sequential(
            *(EncoderBlock(part.width, part.heads, part.hidden) for _ in range(part.depth))
        )
        self.norm = nn.LayerNorm(part.width)
        self.head = nn.Linear(part.width, part.classes)
        for name, parameter in self.named_parameters():
            if name in ("class_token", "positions"):
                nn.init.normal_(parameter, std=_DEVIATION)
            elif parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter.flatten(1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "s c h w"]) -> Float[Tensor, "s k"]:
        """Run the network.

        Args:
            x: pictures.

        Returns:
            Logits.
        """
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


@register("model", "vit")
@dataclass(frozen=True)
class ViT(Model):
    """A vision transformer for small pictures, normalised before each layer, with a class token.

    Dosovitskiy et al. 2021, arXiv:2010.11929; without dropout, and with random positions that are larger
    than theirs, since small data are learned better so. Layers are called patches, blocks.0.attention.qkv,
    blocks.0.attention.projection, blocks.0.fc1, blocks.0.fc2, ..., head.

    Attributes:
        size: height and width of the pictures, pixels.
        channels: of the pictures: 1 (grey) or 3 (colour).
        patch: height and width of a patch, pixels; it divides both of `size`.
        width: features of a token.
        depth: encoder blocks.
        heads: of the attention; they divide the width.
        hidden: width of the perceptron in a block.
        classes: outputs.
        weights: a file of trained weights; None: drawn at random.
        seed: of the random weights.
    """

    size: tuple[int, int] = (8, 8)
    channels: int = 1
    patch: int = 2
    width: int = 32
    depth: int = 2
    heads: int = 4
    hidden: int = 64
    classes: int = 10
    weights: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the shape of the network.

        Raises:
            SecateurError: a number is not positive, or does not divide another that it should.
        """
        for name in ("channels", "patch", "width", "depth", "heads", "hidden", "classes"):
            if getattr(self, name) < 1:
                raise SecateurError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        if min(self.size) < 1 or any(side % self.patch for side in self.size):
            raise SecateurError(
                f"patch is {self.patch}, but pictures have {self.size[0]} x {self.size[1]} pixels: give a "
                "number that divides both."
            )
        if self.width % self.heads:
            raise SecateurError(
                f"heads is {self.heads}, but the width is {self.width}: give a number that divides it."
            )

    def build(self, task: Task | None = None) -> nn.Module:
        """Build the network.

        Args:
            task: not used.

        Returns:
            The network.
        """
        return filled(lambda: VisionTransformer(self), self.weights, self.seed)
