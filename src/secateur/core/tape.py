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
from secateur.core.matrices import gram
from secateur.core.moments import Moments

# Floats that a chunk of an intermediate may hold: 64 Mi, 256 MB in float32.
CHUNK = 1 << 26


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


@dataclass(frozen=True, eq=False)
class LinearTape(Records):
    """The records of a linear layer.

    Inputs and output gradients are stored feature-major, so that gathering the features of
    a block copies contiguous memory.

    Attributes:
        inputs: X, [in, S, T]: S samples of T positions.
        gradient: the mean gradient of the loss, [out, in].
        rows: D, [out, R, S, T]; None where no curvature asked for rows.
    """

    inputs: Float[Tensor, "i s t"]
    gradient: Float[Tensor, "o i"]
    rows: Float[Tensor, "o r s t"] | None

    @property
    def samples(self) -> int:
        """S."""
        return self.inputs.shape[1]

    @property
    def draws(self) -> int:
        """Rows a sample."""
        return 0 if self.rows is None else self.rows.shape[1]

    @property
    def numbers(self) -> int:
        """How many numbers are held."""
        return self.inputs.numel() + (0 if self.rows is None else self.rows.numel())

    @property
    def moments(self) -> Moments:
        """Sums over all samples and positions of the inputs."""
        return Moments.of(self.inputs.flatten(1).T)

    def _rows(self) -> Tensor:
        if self.rows is None:
            raise RuntimeError("the tape holds no rows: the capture was not asked for any.")
        return self.rows

    def factors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n q"]:
        """Gather the gradients of all rows with respect to some weights."""
        rows = self._rows()
        ins, samples, positions = self.inputs.shape
        outs, draws = rows.shape[:2]
        i, j = index // ins, index % ins
        if positions == 1:
            gathered = rows.reshape(outs, draws, samples)[i]
            return gathered.mul_(self.inputs.reshape(ins, 1, samples)[j]).reshape(index.numel(), -1)
        step = max(1, CHUNK // (draws * samples * positions))
        pieces = [
            torch.einsum("nrst,nst->nrs", rows[a], self.inputs[b])
            for a, b in zip(i.split(step), j.split(step), strict=True)
        ]
        return torch.cat(pieces).reshape(index.numel(), -1)

    def pullback(self, response: Float[Tensor, " q"]) -> Float[Tensor, "o i"]:
        """Compute sum_q response_q G_q over the whole layer, by one matrix product a draw."""
        rows = self._rows()
        samples = self.inputs.shape[1]
        outs, draws = rows.shape[:2]
        weights = response.to(rows.dtype).reshape(draws, samples, 1)
        flat = self.inputs.flatten(1)
        total = (rows[:, 0] * weights[0]).reshape(outs, -1) @ flat.T
        for r in range(1, draws):
            total += (rows[:, r] * weights[r]).reshape(outs, -1) @ flat.T
        return total

    def push(self, direction: Float[Tensor, "o i"]) -> Float[Tensor, " q"]:
        """Compute <G_q, V> for every row q, by one matrix product."""
        rows = self._rows()
        _, samples, positions = self.inputs.shape
        moved = self.outputs(direction).reshape(-1, samples, positions)
        return torch.einsum("orst,ost->rs", rows, moved).flatten()

    def outputs(self, direction: Float[Tensor, "o i"]) -> Float[Tensor, "..."]:
        """Multiply a change of the weights with the inputs."""
        return direction.to(self.inputs.dtype) @ self.inputs.flatten(1)

    def gram(self) -> Float[Tensor, "g i i"]:
        """Sum the products of inputs over all samples and positions."""
        return gram(self.inputs.flatten(1))[None]

    def diagonal(self) -> Float[Tensor, "o i"]:
        """Compute the diagonal; of single positions as a product of squares."""
        if self.inputs.shape[2] > 1:
            return super().diagonal()
        squares = self._rows().square().sum(1).flatten(1)
        return squares @ self.inputs.flatten(1).square().T / self.samples

    def sample_gradients(self, draw: int, begin: int, end: int) -> Float[Tensor, "s o i"]:
        """Compute the gradients of some rows."""
        x = self.inputs[:, begin:end].permute(1, 2, 0)
        d = self._rows()[:, draw, begin:end].permute(1, 0, 2)
        return torch.bmm(d, x)

    def joined(self, others: Sequence[LayerTape], gradient: Float[Tensor, "o i"]) -> LayerTape:
        """Join with the records of further samples."""
        pieces = [self, *(other for other in others if isinstance(other, LinearTape))]
        rows = [piece.rows for piece in pieces if piece.rows is not None]
        inputs = torch.cat([piece.inputs for piece in pieces], 1)
        return LinearTape(inputs, gradient, torch.cat(rows, 2) if rows else None)


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
