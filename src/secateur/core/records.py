"""What a tape holds of a layer: inputs and output gradients, or the gradients that follow from them."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.core.moments import Moments
from secateur.core.tape import LayerTape

# Floats that a chunk of an intermediate may hold: 64 Mi, 256 MB in float32.
CHUNK = 1 << 26


@dataclass(frozen=True, eq=False)
class SampleGradients(LayerTape):
    """The gradients of all rows, where those are fewer numbers than what they follow from.

    Attributes:
        gradient: the mean gradient of the loss, [out, in].
        rows: G, [out * in, R, S].
        moments: sums over the inputs; refused where nobody asked for them.
    """

    gradient: Float[Tensor, "o i"]
    rows: Float[Tensor, "w r s"]
    sums: Moments | None = None

    @property
    def samples(self) -> int:
        """S."""
        return self.rows.shape[2]

    @property
    def draws(self) -> int:
        """Rows a sample."""
        return self.rows.shape[1]

    @property
    def moments(self) -> Moments:
        """Sums over all samples and positions of the inputs."""
        if self.sums is None:
            raise RuntimeError("the tape holds no moments: the capture was not asked for any.")
        return self.sums

    def factors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n q"]:
        """Gather the gradients of all rows with respect to some weights."""
        return self.rows[index].flatten(1)

    def pullback(self, response: Float[Tensor, " q"]) -> Float[Tensor, "o i"]:
        """Compute sum_q response_q G_q, by one product with a vector."""
        return (self.rows.flatten(1) @ response.to(self.rows.dtype)).reshape(self.gradient.shape)

    def push(self, direction: Float[Tensor, "o i"]) -> Float[Tensor, " q"]:
        """Compute <G_q, V> for every row q, by one product with a vector."""
        return direction.to(self.rows.dtype).reshape(-1) @ self.rows.flatten(1)

    def diagonal(self) -> Float[Tensor, "o i"]:
        """Compute (1/S) sum_q G_q[i, j]^2."""
        norms = torch.linalg.vector_norm(self.rows.flatten(1), dim=1)
        return (norms.square() / self.samples).reshape(self.gradient.shape)

    def joined(self, others: Sequence[LayerTape], gradient: Float[Tensor, "o i"]) -> LayerTape:
        """Join with the gradients of further samples."""
        pieces = [self, *(other for other in others if isinstance(other, SampleGradients))]
        sums = self.sums
        for piece in pieces[1:]:
            sums = None if sums is None or piece.sums is None else sums + piece.sums
        return SampleGradients(gradient, torch.cat([piece.rows for piece in pieces], 2), sums)


class Records(LayerTape):
    """Inputs, and output gradients of the rows, from which everything follows."""

    @property
    @abstractmethod
    def numbers(self) -> int:
        """How many numbers are held."""

    @abstractmethod
    def sample_gradients(self, draw: int, begin: int, end: int) -> Float[Tensor, "s o i"]:
        """Compute the gradients of some rows.

        Args:
            draw: which of those of a sample.
            begin: the first sample.
            end: behind the last.

        Returns:
            G_q of each of those samples.
        """

    @abstractmethod
    def outputs(self, direction: Float[Tensor, "o i"]) -> Float[Tensor, "..."]:
        """Multiply a change of the weights with the inputs.

        Args:
            direction: V, [out, in].

        Returns:
            The change of all outputs.
        """

    @abstractmethod
    def gram(self) -> Float[Tensor, "g i i"]:
        """Sum the products of inputs over all samples and positions.

        Returns:
            X X' of each group of inputs, exactly symmetric.
        """

    def diagonal(self) -> Float[Tensor, "o i"]:
        """Compute (1/S) sum_q G_q[i, j]^2, the diagonal of the curvature."""
        total = torch.zeros_like(self.gradient)
        for r, begin, end in self._pieces():
            total += self.sample_gradients(r, begin, end).square_().sum(0)
        return total / self.samples

    def folded(self, *, moments: bool) -> LayerTape:
        """Give the gradients of the rows instead, where those are fewer numbers.

        Args:
            moments: whether sums over the inputs are wanted, too.

        Returns:
            Them, or the records as they are.
        """
        rows, weights = self.draws * self.samples, self.gradient.numel()
        if rows == 0 or rows * weights > self.numbers:
            return self
        sums = self.moments if moments else None
        gradients = self.gradient.new_empty(weights, self.draws, self.samples)
        for r, begin, end in self._pieces():
            gradients[:, r, begin:end] = self.sample_gradients(r, begin, end).flatten(1).T
        return SampleGradients(self.gradient, gradients, sums)

    def _pieces(self) -> list[tuple[int, int, int]]:
        """Divide the rows into pieces whose gradients, and copies made for them, are no more than a chunk."""
        each = max(self.gradient.numel(), self._copied())
        step = max(1, CHUNK // max(1, each))
        return [
            (r, begin, min(begin + step, self.samples))
            for begin in range(0, self.samples, step)
            for r in range(self.draws)
        ]

    def _copied(self) -> int:
        """Say how many numbers of a sample `sample_gradients` copies."""
        return self.numbers // max(1, self.samples)
