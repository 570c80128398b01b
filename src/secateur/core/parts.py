"""The abstract parts that a pruner is put together from.

Each is a frozen dataclass whose fields are its hyper-parameters. What a part needs
recorded it says in `needs`; the capture records the union.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.block import Block
from secateur.core.budget import Budget, Grouping
from secateur.core.problem import BlockProblem
from secateur.core.tape import LayerTape, Tape


class Signal(Enum):
    """What a pass can record."""

    INPUTS = auto()  # the layers' inputs
    GRADIENT = auto()  # the mean gradient of the loss
    LOSS_ROWS = auto()  # output gradients of each sample's loss
    SAMPLED_ROWS = auto()  # output gradients for labels drawn from the model
    GAUSS_NEWTON_ROWS = auto()  # pullbacks of the factors of the loss's output Hessian
    HESSIAN = auto()  # double backward


@dataclass(frozen=True)
class Score(ABC):
    """Says how much each weight is worth keeping.

    Attributes:
        ranking: ``"global"`` compares raw scores; ``"layer"``, ``"output"`` and ``"input"``
            replace each score by its relative rank, in (0, 1], within its layer, output row
            or input column, so that a threshold spares the same fraction of each.
    """

    part_name: ClassVar[str] = "score"
    needs: ClassVar[frozenset[Signal]] = frozenset()
    ranking: Grouping = "global"

    @abstractmethod
    def raw(
        self, weight: Float[Tensor, "o i"], tape: LayerTape | None, generator: torch.Generator
    ) -> Float[Tensor, "o i"]:
        """Score a layer's weights, before any ranking.

        Args:
            weight: the reference weights.
            tape: the layer's records, if the score needs any.
            generator: where randomness comes from.

        Returns:
            Scores; higher = more worth keeping.
        """

    def __call__(
        self, weight: Float[Tensor, "o i"], tape: LayerTape | None, generator: torch.Generator
    ) -> Float[Tensor, "o i"]:
        """Score a layer's weights and rank them as `ranking` says.

        Args:
            weight: the reference weights.
            tape: the layer's records, if the score needs any.
            generator: where randomness comes from.

        Returns:
            Scores; higher = more worth keeping.
        """
        return relative_rank(self.raw(weight, tape, generator), self.ranking)


def relative_rank(scores: Float[Tensor, "o i"], ranking: Grouping) -> Float[Tensor, "o i"]:
    """Replace scores by ranks within groups, ties by position.

    Args:
        scores: raw scores.
        ranking: the groups; ``"global"`` leaves the scores as they are.

    Returns:
        Ranks divided by the group's size, in (0, 1].
    """
    if ranking == "global":
        return scores
    shaped = {"layer": scores.reshape(1, -1), "output": scores, "input": scores.T}[ranking]
    order = shaped.argsort(dim=1, stable=True)
    places = torch.arange(1, shaped.shape[1] + 1, device=scores.device, dtype=scores.dtype) / shaped.shape[1]
    ranks = torch.empty_like(shaped).scatter_(1, order, places.expand_as(shaped))
    return {"layer": ranks.reshape(scores.shape), "output": ranks, "input": ranks.T}[ranking]


class Allocation(ABC):
    """Spreads an overall density over the layers."""

    part_name: ClassVar[str] = "allocation"

    @abstractmethod
    def budget(self, shapes: Mapping[str, tuple[int, int]], density: float, grouping: Grouping) -> Budget:
        """Turn a density into exact counts.

        Args:
            shapes: outputs and inputs of each layer, in the network's order.
            density: overall fraction kept, in (0, 1).
            grouping: what a group is.

        Returns:
            The budget.
        """


class Linearisation(ABC):
    """A quadratic model of the loss around the weights at which a tape was recorded.

    It moves with the mask: after `move`, gradients are those of the model at the new point.
    """

    @abstractmethod
    def gradient(self, name: str) -> Float[Tensor, "o i"]:
        """Give the model's gradient at the current point for a whole layer.

        Args:
            name: the layer.

        Returns:
            g + H d.
        """

    @abstractmethod
    def diagonal(self, name: str) -> Float[Tensor, "o i"]:
        """Give the diagonal of the curvature for a whole layer.

        Args:
            name: the layer.

        Returns:
            diag(H).
        """

    @abstractmethod
    def quadratic(self, block: Block) -> "QuadraticModel":
        """Give gradient and curvature of a block at the current point.

        Args:
            block: the weights.

        Returns:
            The block's quadratic model.
        """

    @abstractmethod
    def move(self, block: Block, model: "QuadraticModel", delta: Float[Tensor, " n"]) -> None:
        """Move the point: the block's weights change by `delta`.

        Args:
            block: the weights.
            model: what `quadratic` gave for the block.
            delta: the change of each weight.
        """


class Curvature(ABC):
    """Builds linearisations from tapes."""

    part_name: ClassVar[str] = "curvature"
    needs: ClassVar[frozenset[Signal]] = frozenset()
    draws: int = 1

    @abstractmethod
    def linearise(self, tape: Tape) -> Linearisation:
        """Model the loss around the point at which a tape was recorded.

        Args:
            tape: the records.

        Returns:
            The linearisation.
        """


@dataclass(frozen=True, eq=False)
class QuadraticModel:
    """Gradient and curvature of the mean loss over a block: dL(d) = g.d + 1/2 d'H d.

    H is dense, or H = A A' with A [n, q].

    Attributes:
        gradient: g, nats per unit of weight.
        dense: H; None where it is given by factors.
        factors: A; None where H is given dense.
    """

    gradient: Float[Tensor, " n"]
    dense: Float[Tensor, "n n"] | None = None
    factors: Float[Tensor, "n q"] | None = None

    def problem(
        self,
        reference: Float[Tensor, " n"],
        pruned: Bool[Tensor, " n"],
        groups: Int[Tensor, " n"],
        multiplier: float = 1.0,
        ridge: float = 0.0,
        anchor: Bool[Tensor, " n"] | None = None,
    ) -> BlockProblem:
        """Write the choice of a block's mask as a binary quadratic problem.

        With w0 the reference weights, x0 what is pruned now and xa what was pruned at the
        anchor, the change of the weights is d = w0 (x0 - x), and

            dL(x) = a g.d + 1/2 d'H d + r sum_i w0_i^2 (|x - xa| - |x0 - xa|)_i
            B = w0 w0' * H
            l = -B x0 - a w0 g + r w0^2 (1 - 2 xa)
            c = 1/2 x0'B x0 + a (w0 g).x0 - r (w0^2 (1 - 2 xa)).x0

        (Rosenberg et al. 2024, arXiv:2411.17796; there xa = x0, the ridge's weight being
        the distance from the current weights.) The value at x0 is 0.

        Args:
            reference: w0.
            pruned: x0.
            groups: the budget group of each weight.
            multiplier: a, what the gradient is multiplied with.
            ridge: r >= 0, nats per squared unit of weight.
            anchor: xa, where the distance is measured from; x0 where None.

        Returns:
            The problem, with x0 as its incumbent.
        """
        w, x0 = reference.double(), pruned.double()
        side = 1 - 2 * (x0 if anchor is None else anchor.double())
        penalty = ridge * w.square() * side
        slope = multiplier * w * self.gradient.double()
        hessian = self.dense if self.factors is None else self.factors @ self.factors.T
        assert hessian is not None
        matrix = w[:, None] * hessian.double() * w
        pull = matrix @ x0
        return BlockProblem(
            constant=float(0.5 * (x0 @ pull) + (slope - penalty) @ x0),
            linear=(penalty - slope - pull).cpu(),
            groups=torch.unique(groups, return_inverse=True)[1].cpu(),
            incumbent=pruned.cpu(),
            dense=matrix.cpu(),
        )

    def change(self, delta: Float[Tensor, " n"]) -> float:
        """Predict the change of the mean loss when the weights change.

        Args:
            delta: the change of each weight.

        Returns:
            g.d + 1/2 d'H d, nats a sample.
        """
        first = float(self.gradient.double() @ delta.double())
        if self.factors is not None:
            return first + 0.5 * float((delta.to(self.factors.dtype) @ self.factors).double().square().sum())
        assert self.dense is not None
        return first + 0.5 * float(delta.double() @ self.dense.double() @ delta.double())


@dataclass(frozen=True, eq=False)
class LayerView:
    """A layer in the middle of a run: what a selector may look at.

    Attributes:
        name: the layer.
        reference: the trained weights w0.
        mask: what is kept now.
        anchor: what was kept where the step was linearised.
        stamps: the number of the last block that each weight was in; 0 = none yet.
        frozen: weights that never change in this run.
        tape: the layer's records.
        linearisation: the quadratic model of the step.
        ridge: the ridge of the step, nats per squared unit of weight.
        multiplier: what the gradient is multiplied with.
        generator: where randomness comes from.
    """

    name: str
    reference: Float[Tensor, "o i"]
    mask: Bool[Tensor, "o i"]
    anchor: Bool[Tensor, "o i"]
    stamps: Int[Tensor, "o i"]
    frozen: Bool[Tensor, "o i"]
    tape: LayerTape
    linearisation: Linearisation
    ridge: float
    multiplier: float
    generator: torch.Generator


class Selector(ABC):
    """Says how much each weight promises if the next block may exchange it."""

    part_name: ClassVar[str] = "selector"

    @property
    @abstractmethod
    def needs(self) -> frozenset[Signal]:
        """What must be recorded for it."""

    @abstractmethod
    def gain(self, view: LayerView) -> Float[Tensor, "o i"]:
        """Say how much each weight promises; -inf = must not be exchanged.

        Args:
            view: the layer as it stands.

        Returns:
            Gains: of the pruned weights and of the kept ones, those with the highest gain
            are exchanged first.
        """

    def freeze(self, mask: Bool[Tensor, "o i"], scores: Float[Tensor, "o i"]) -> Bool[Tensor, "o i"]:
        """Say, at the start of a run, which weights never change in it.

        Args:
            mask: the one-shot mask.
            scores: the scores it was drawn by.

        Returns:
            True = frozen; by default none is.
        """
        return torch.zeros_like(mask)


class LayerOrder(ABC):
    """Chooses the layer that the next block is taken from."""

    part_name: ClassVar[str] = "order"

    def patience(self, layers: int) -> int:
        """Say how many blocks in a row may change nothing before a stage ends.

        Args:
            layers: how many layers there are.

        Returns:
            The number; by default that of the layers.
        """
        return layers

    @abstractmethod
    def choose(
        self,
        sizes: Mapping[str, int],
        turn: int,
        generator: torch.Generator,
        promise: Callable[[str], float],
    ) -> Sequence[str]:
        """Choose the layer, or several, for one block.

        Args:
            sizes: prunable weights of each layer.
            turn: how many blocks have been taken before this one.
            generator: where randomness comes from.
            promise: layer -> the gain, in nats, that the selector predicts for the best
                block in it; costs a selection.

        Returns:
            The layers' names.
        """
