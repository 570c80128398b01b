"""The records of a convolution: its inputs once, and patches as views of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.core.moments import Moments
from secateur.core.patches import CHUNK, Patches
from secateur.core.records import Records
from secateur.core.tape import LayerTape


@dataclass(frozen=True, eq=False)
class Use:
    """One call of a convolution.

    Attributes:
        patches: how the inputs are cut.
        inputs: padded, [N, C, *padded]; N is the number of samples, or a multiple where each has several.
        rows: gradients at the outputs, [R, N, O, *space]; None where no curvature asked for rows.
    """

    patches: Patches
    inputs: Float[Tensor, "n c *padded"]
    rows: Float[Tensor, "r n o *space"] | None


@dataclass(frozen=True, eq=False)
class ConvolutionTape(Records):
    """The records of a convolution; where it is used several times, gradients are summed over the uses.

    Attributes:
        gradient: the mean gradient of the loss, [out, in].
        uses: what each call was given and gave.
        size: S, of which `inputs` may have several rows each.
    """

    gradient: Float[Tensor, "o i"]
    uses: tuple[Use, ...]
    size: int

    @property
    def samples(self) -> int:
        """S."""
        return self.size

    @property
    def draws(self) -> int:
        """Rows a sample."""
        rows = self.uses[0].rows
        return 0 if rows is None else len(rows)

    @property
    def numbers(self) -> int:
        """How many numbers are held."""
        return sum(use.inputs.numel() + (0 if use.rows is None else use.rows.numel()) for use in self.uses)

    @property
    def moments(self) -> Moments:
        """Sums over all samples and positions of the patches."""
        first, *others = (Moments.of_patches(use.patches, use.inputs) for use in self.uses)
        return sum(others, first)

    def factors(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n q"]:
        """Gather the gradients of all rows with respect to some weights."""
        outs, ins = self.gradient.shape
        total: Tensor | None = None
        for use in self.uses:
            rows = _rows(use)
            positions = rows[0, 0, 0].numel()
            step = max(1, CHUNK // max(1, rows.shape[0] * rows.shape[1] * positions))
            pieces = []
            for some in index.split(step):
                i, j = some // ins, some % ins
                x = use.patches.features(use.inputs, i // (outs // use.patches.groups), j)
                d = rows.movedim(2, 0)[i].flatten(3)
                pieces.append(torch.einsum("mrnt,mnt->mrn", d, x))
            found = torch.cat(pieces).reshape(len(index), -1, self.size, len(use.inputs) // self.size)
            total = found.sum(3) if total is None else total.add_(found.sum(3))
        assert total is not None
        return total.flatten(1)

    def pullback(self, response: Float[Tensor, " q"]) -> Float[Tensor, "o i"]:
        """Compute sum_q response_q G_q over the whole layer, by one convolution a draw."""
        total = torch.zeros_like(self.gradient)
        for use in self.uses:
            rows = _rows(use)
            weights = response.to(rows.dtype).reshape(len(rows), self.size)
            weights = weights.repeat_interleave(len(use.inputs) // self.size, 1)
            for d, weight in zip(rows, weights, strict=True):
                total += use.patches.gradient(use.inputs, d * weight.reshape(-1, *[1] * (d.dim() - 1)))
        return total

    def push(self, direction: Float[Tensor, "o i"]) -> Float[Tensor, " q"]:
        """Compute <G_q, V> for every row q, by one convolution."""
        total = self.gradient.new_zeros(self.draws, self.size)
        for use in self.uses:
            rows, moved = _rows(use), use.patches.apply(use.inputs, direction)
            found = torch.einsum("rnk,nk->rn", rows.flatten(2), moved.flatten(1))
            total += found.reshape(len(rows), self.size, -1).sum(2)
        return total.flatten()

    def outputs(self, direction: Float[Tensor, "o i"]) -> Float[Tensor, "..."]:
        """Multiply a change of the weights with the patches."""
        return torch.cat([use.patches.apply(use.inputs, direction).flatten() for use in self.uses])

    def gram(self) -> Float[Tensor, "g i i"]:
        """Sum the products of patches over all samples and positions."""
        first, *others = (use.patches.gram(use.inputs) for use in self.uses)
        return sum(others, first)

    def sample_gradients(self, draw: int, begin: int, end: int) -> Float[Tensor, "s o i"]:
        """Compute the gradients of some rows."""
        total: Tensor | None = None
        for use in self.uses:
            each = len(use.inputs) // self.size
            part = slice(begin * each, end * each)
            found = use.patches.sample_gradients(use.inputs[part], _rows(use)[draw, part], end - begin)
            total = found if total is None else total.add_(found)
        assert total is not None
        return total

    def joined(self, others: Sequence[LayerTape], gradient: Float[Tensor, "o i"]) -> LayerTape:
        """Join with the records of further samples."""
        pieces = [self, *(other for other in others if isinstance(other, ConvolutionTape))]
        uses = []
        for same in zip(*(piece.uses for piece in pieces), strict=True):
            rows = [use.rows for use in same if use.rows is not None]
            inputs = torch.cat([use.inputs for use in same])
            uses.append(Use(same[0].patches, inputs, torch.cat(rows, 1) if rows else None))
        return ConvolutionTape(gradient, tuple(uses), sum(piece.size for piece in pieces))

    def _copied(self) -> int:
        """Say how many numbers of a sample `sample_gradients` copies: its patches."""
        return max(
            use.patches.unfolded_numbers(use.inputs) * len(use.inputs) // self.size for use in self.uses
        )


def _rows(use: Use) -> Float[Tensor, "r n o *space"]:
    """Give the rows of a use."""
    if use.rows is None:
        raise RuntimeError("the tape holds no rows: the capture was not asked for any.")
    return use.rows
