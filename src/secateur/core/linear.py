"""The records of a linear layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.core.matrices import gram
from secateur.core.moments import Moments
from secateur.core.records import CHUNK, Records
from secateur.core.tape import LayerTape


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
