"""The tape: what one pass over a batch recorded, and the gradients that follow from it.

For a linear layer the gradient of row q (a sample, or one draw of labels for it) with
respect to weight (i, j) is the sum over positions t of

    G_q[i, j] = sum_t  D_q[i, t] * X_s(q)[j, t]

with X the layer's inputs and D the gradients at its outputs. Everything here is a gather
or a matrix product of those two; no per-sample gradient of a whole layer is ever held.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.core.block import Block
from secateur.core.moments import Moments

# Floats that a chunk of an intermediate may hold: 64 Mi, 256 MB in float32.
CHUNK = 1 << 26


@dataclass(frozen=True, eq=False)
class LayerTape:
    """The records of one layer.

    Inputs and output gradients are stored feature-major, so that gathering the features of
    a block copies contiguous memory. Rows are numbered draw by draw: q = r * S + s.

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
    def moments(self) -> Moments:
        """Sums over all samples and positions of the inputs."""
        return Moments.of(self.inputs.flatten(1).T)

    def _rows(self) -> Tensor:
        if self.rows is None:
            raise RuntimeError("the tape holds no rows: the capture was not asked for any.")
        return self.rows

    def factors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n q"]:
        """Gather the gradients of all rows with respect to some weights.

        Args:
            index: flat positions in the layer.

        Returns:
            G_q[index], one column a row q.
        """
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
        """Compute sum_q response_q G_q over the whole layer, by one matrix product a draw.

        Args:
            response: a weight for each row.

        Returns:
            The sum, [out, in].
        """
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
        """Compute <G_q, V> for every row q, by one matrix product: the adjoint of `pullback`.

        Args:
            direction: V, [out, in].

        Returns:
            One number a row.
        """
        rows = self._rows()
        _, samples, positions = self.inputs.shape
        moved = (direction.to(rows.dtype) @ self.inputs.flatten(1)).reshape(-1, samples, positions)
        return torch.einsum("orst,ost->rs", rows, moved).flatten()

    def diagonal(self) -> Float[Tensor, "o i"]:
        """Compute (1/S) sum_q G_q[i, j]^2, the diagonal of the curvature.

        Returns:
            The diagonal, [out, in].
        """
        rows = self._rows()
        ins, samples, positions = self.inputs.shape
        outs, draws = rows.shape[:2]
        if positions == 1:
            squares = rows.square().sum(1).reshape(outs, samples)
            return squares @ self.inputs.reshape(ins, samples).square().T / samples
        total = self.inputs.new_zeros(outs, ins)
        step = max(1, CHUNK // (outs * ins))
        for start in range(0, samples, step):
            x = self.inputs[:, start : start + step].permute(1, 2, 0)
            for r in range(draws):
                d = rows[:, r, start : start + step].permute(1, 0, 2)
                total += torch.bmm(d, x).square().sum(0)
        return total / samples


@dataclass(frozen=True, eq=False)
class Tape:
    """What one pass over a batch recorded for every layer.

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
            pieces = [part.pop(name) for part in parts]
            gradient = sum(share * piece.gradient for share, piece in zip(shares, pieces, strict=True))
            rows = [piece.rows for piece in pieces if piece.rows is not None]
            assert isinstance(gradient, Tensor)
            layers[name] = LayerTape(
                torch.cat([piece.inputs for piece in pieces], 1),
                gradient,
                torch.cat(rows, 2) if rows else None,
            )
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
