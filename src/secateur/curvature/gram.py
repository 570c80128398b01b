"""The error of the layers' outputs, which is quadratic in the weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.block import Block
from secateur.core.curvature import Curvature, Displacement, Linearisation
from secateur.core.quadratic import QuadraticModel
from secateur.core.records import Records
from secateur.core.registry import register
from secateur.core.signal import Signal
from secateur.core.tape import Tape


class GramLinearisation(Linearisation):
    """E = 1/2 sum over layers and rows of d' G d, d being the displacement of a row from its reference.

    Memory: a Gram matrix and a gradient for each layer that was asked for.
    """

    def __init__(self, tape: Tape, displacement: Displacement) -> None:
        """Start at the point of the tape.

        Args:
            tape: the records.
            displacement: of the weights there from the reference weights.
        """
        self.tape = tape
        self.displacement = displacement
        self._grams: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}

    def gram(self, name: str) -> Float[Tensor, "g i i"]:
        """Give G of a layer, computed once a tape.

        Args:
            name: the layer.

        Returns:
            X X' / S, over all positions of S samples, for each group of outputs with the same inputs.
        """
        if name not in self._grams:
            layer = _records(self.tape, name)
            self._grams[name] = layer.gram().div_(layer.samples)
        return self._grams[name]

    def gradient(self, name: str) -> Float[Tensor, "o i"]:
        """Give (W - W0) G for a layer."""
        if name not in self._gradients:
            matrix = self.gram(name)
            parts = self.displacement(name).to(matrix.dtype).unflatten(0, (len(matrix), -1))
            self._gradients[name] = (parts @ matrix).flatten(0, 1)
        return self._gradients[name]

    def diagonal(self, name: str) -> Float[Tensor, "o i"]:
        """Give the diagonal of G for every row of a layer."""
        diagonal = self.gram(name).diagonal(dim1=1, dim2=2)
        return diagonal.repeat_interleave(self._outputs(name), 0)

    def _outputs(self, name: str) -> int:
        """Count the outputs that have the same inputs."""
        return len(self.tape.layers[name].gradient) // len(self.gram(name))

    def quadratic(self, block: Block) -> QuadraticModel:
        """Give the block's gradient, and G between weights of the same layer and row."""
        size = block.size
        gradient = block.gather({name: self.gradient(name) for name in block.indices})
        dense = gradient.new_zeros(size, size)
        at = 0
        for name, index in block.indices.items():
            matrix = self.gram(name)
            i, j = index // matrix.shape[1], index % matrix.shape[1]
            group = i // self._outputs(name)
            piece = matrix[group[:, None], j[:, None], j].mul_(i[:, None] == i)
            dense[at : at + index.numel(), at : at + index.numel()] = piece
            at += index.numel()
        return QuadraticModel(gradient, dense=dense)

    def move(self, block: Block, model: QuadraticModel, delta: Float[Tensor, " n"]) -> None:
        """Move the gradients of the rows that change."""
        for name, piece in block.split(delta).items():
            matrix, gradient = self.gram(name), self.gradient(name)
            moved = piece.nonzero().squeeze(1)
            index = block.indices[name][moved]
            i, j = index // matrix.shape[1], index % matrix.shape[1]
            change = piece[moved].to(matrix.dtype)[:, None] * matrix[i // self._outputs(name), j]
            # Not in place: whoever asked for the gradient before may still hold it.
            self._gradients[name] = gradient.index_add(0, i, change)


@register("curvature", "gram")
@dataclass(frozen=True)
class Gram(Curvature):
    """The squared error of each layer's output, in the place of the loss.

        E(W) = 1/2 sum over layers of tr((W - W0) G (W - W0)'),    G = X X' / S

    with X the inputs [in, S * T] that the layer has in the model as it stands, so that E is half the squared
    error of the outputs in a sample, summed over positions, outputs and layers. Its curvature is G within
    each row and 0 between rows and layers (Hassibi and Stork 1993; Dong et al. 2017, arXiv:1705.07565). E is
    quadratic, so that the predicted change is the measured one, but for rounding, and there is nothing
    that a trust region would have to doubt; the inputs are those that the layers had before the stage, so
    that what a layer's change does to the next one's inputs shows in the next stage only. With a
    multiplier of 1 the blocks minimise E itself. The predicted and measured changes of a step, and the unit
    of the ridge, are those of E, not nats; which mask is the best, the guard samples' loss says.

    Needs no backward pass. Memory: in^2 numbers a layer beside the tape.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.INPUTS})

    def linearise(self, tape: Tape) -> Linearisation:
        """Model the error around the reference weights."""
        return self.linearise_from(tape, lambda name: torch.zeros_like(tape.layers[name].gradient))

    def linearise_from(self, tape: Tape, displacement: Displacement) -> Linearisation:
        """Model the error around the point of a tape."""
        return GramLinearisation(tape, displacement)

    def measured(self, tape: Tape, before: Displacement, after: Displacement) -> float:
        """Measure the change of the error at the layers' outputs, on the inputs of the tape."""
        total = 0.0
        for name in tape.layers:
            old, new, layer = before(name), after(name), _records(tape, name)
            if not torch.equal(old, new):
                # As a difference of squares, which keeps the digits that both have in common.
                change, both = (layer.outputs(d).double() for d in (new - old, new + old))
                total += float((change * both).sum()) / (2 * layer.samples)
        return total


def _records(tape: Tape, name: str) -> Records:
    """Give the records of a layer: of inputs alone, which are never folded into gradients."""
    layer = tape.layers[name]
    assert isinstance(layer, Records)
    return layer
