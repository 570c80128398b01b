"""The tape: what one pass over a batch recorded, and the gradients that follow from it.

For a linear layer the gradient of row q (a sample, or one draw of labels for it) with
respect to weight (i, j) is the sum over positions t of

    G_q[i, j] = sum_t  D_q[i, t] * X_s(q)[j, t]

with X the layer's inputs and D the gradients at its outputs; for a convolution X are the patches of its
inputs. Either X and D are kept, and everything is a gather or a matrix product of those two; or, where
a layer has fewer weights than a sample has numbers in X and D, the G_q themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.core.block import Block
from secateur.core.moments import Moments


class LayerTape(ABC):
    """The gradients of one layer: the mean, and one a row. Rows are numbered draw by draw: q = r * S + s.

    Attributes:
        gradient: the mean gradient of the loss, [out, in].
    """

    gradient: Float[Tensor, "o i"]

    @property
    @abstractmethod
    def samples(self) -> int:
        """S."""

    @property
    @abstractmethod
    def draws(self) -> int:
        """Rows a sample; 0 where no curvature asked for rows."""

    @property
    @abstractmethod
    def moments(self) -> Moments:
        """Sums over all samples and positions of the inputs."""

    @abstractmethod
    def factors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n q"]:
        """Give the gradients of all rows with respect to some weights.

        Args:
            index: flat positions in the layer.

        Returns:
            G_q[index], one column a row q.
        """

    @abstractmethod
    def pullback(self, response: Float[Tensor, " q"]) -> Float[Tensor, "o i"]:
        """Compute sum_q response_q G_q over the whole layer.

        Args:
            response: a weight for each row.

        Returns:
            The sum, [out, in].
        """

    @abstractmethod
    def push(self, direction: Float[Tensor, "o i"]) -> Float[Tensor, " q"]:
        """Compute <G_q, V> for every row q: the adjoint of `pullback`.

        Args:
            direction: V, [out, in].

        Returns:
            One number a row.
        """

    @abstractmethod
    def diagonal(self) -> Float[Tensor, "o i"]:
        """Compute (1/S) sum_q G_q[i, j]^2, the diagonal of the curvature.

        Returns:
            The diagonal, [out, in].
        """

    @abstractmethod
    def joined(self, others: "Sequence[LayerTape]", gradient: Float[Tensor, "o i"]) -> "LayerTape":
        """Join with the records of further samples.

        Args:
            others: theirs, of the same kind.
            gradient: the mean over all.

        Returns:
            The records of all samples.
        """


@dataclass(frozen=True, eq=False)
class Tape:
    """The records of all layers for one batch.

    Attributes:
        layers: the records by layer.
        losses: the loss of each sample, nats.
        hessian: block -> exact Hessian of the mean loss over it, [n, n]; None where no
            curvature asked for it.
        hessian_product: displacement of the weights by layer -> Hessian times it, by layer;
            likewise.
    """

    layers: Mapping[str, LayerTape]
    losses: Float[Tensor, " s"]
    hessian: Callable[[Block], Tensor] | None = None
    hessian_product: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None

    @classmethod
    def join(cls, tapes: "list[Tape]") -> "Tape":
        """Join the tapes of the parts of a batch; one layer at a time is there twice.

        Args:
            tapes: the parts, which are emptied; none of them has a Hessian.

        Returns:
            The tape of the batch.
        """
        if len(tapes) == 1:
            return tapes[0]
        losses = torch.cat([tape.losses for tape in tapes])
        shares = [tape.samples / losses.numel() for tape in tapes]
        parts = [dict(tape.layers) for tape in tapes]
        tapes.clear()
        layers = {}
        for name in list(parts[0]):
            first, *others = (part.pop(name) for part in parts)
            gradient = first.gradient * shares[0]
            for share, piece in zip(shares[1:], others, strict=True):
                gradient += share * piece.gradient
            layers[name] = first.joined(others, gradient)
        return cls(layers, losses)

    @property
    def samples(self) -> int:
        """How many samples were recorded."""
        return self.losses.numel()

    @property
    def loss(self) -> float:
        """The mean loss, nats a sample."""
        return float(self.losses.double().mean())

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The mean gradient of each layer."""
        return {name: tape.gradient for name, tape in self.layers.items()}

    def factors(self, block: Block) -> Float[Tensor, "n q"]:
        """Gather the gradients of all rows with respect to a block.

        Args:
            block: the weights.

        Returns:
            One column a row, through the block's layers.
        """
        pieces = [self.layers[name].factors(index) for name, index in block.indices.items()]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
