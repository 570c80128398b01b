"""Block steps on one linearisation: the inner loop of a stage."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from secateur.core.block import Block
from secateur.core.curvature import Linearisation
from secateur.core.errors import SecateurError
from secateur.core.mask import Mask
from secateur.core.problem import BlockProblem
from secateur.core.quadratic import QuadraticModel
from secateur.core.seeds import derive_seed, generator
from secateur.core.selector import LayerOrder, LayerView, Selector
from secateur.core.solver import Solver
from secateur.core.tape import Tape
from secateur.pruners.session import Session
from secateur.pruners.trust import Region
from secateur.selection import Pick, pick_pairs

NOTHING = (
    "some blocks had nothing to exchange: the fixed and tabu sets (or k = 0 or n) hold back every pruned or "
    "every kept weight of a layer, and such steps do nothing; lower the tabu or fixed fractions or the block "
    "size."
)


@dataclass(frozen=True)
class Stage:
    """The shape of a stage.

    Attributes:
        blocks: block problems solved on one linearisation, at most; 1 as published.
        block_size: n, weights in a block, at most.
        pruned: k, how many of them are pruned ones; None = half.
        multiplier: a > 0, what the gradient at the current point, g + H d, is multiplied with;
            below 1 it shortens the moves.
        refresh: blocks that are chosen by the same predicted gains, each from the weights that those before
            it left; 1 = gains are predicted at every point reached, as published. The problems themselves
            are always posed at the point reached.

    Raises:
        SecateurError: a number out of range.
    """

    blocks: int = 12
    block_size: int = 1024
    pruned: int | None = None
    multiplier: float = 0.6
    refresh: int = 4

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.blocks < 1 or self.block_size < 1:
            raise SecateurError(
                f"a stage needs at least one block of at least one weight, not blocks={self.blocks}, "
                f"block_size={self.block_size}."
            )
        if self.refresh < 1:
            raise SecateurError(f"gains must be refreshed after at least 1 block, not {self.refresh}.")
        if self.multiplier <= 0:
            raise SecateurError(f"the gradient multiplier must be positive, not {self.multiplier}.")
        if self.pruned is not None and not 0 <= self.pruned <= self.block_size:
            raise SecateurError(
                f"k = pruned must lie between 0 and block_size = {self.block_size}, not {self.pruned}."
            )

    def resized(self, block_size: int) -> "Stage":
        """Give the same stage with blocks of another size, of the same share of pruned weights.

        Args:
            block_size: n, at least 1.

        Returns:
            The stage.
        """
        pruned = None if self.pruned is None else round(self.pruned * block_size / self.block_size)
        return replace(self, block_size=block_size, pruned=pruned)

    def shape(self, most: int) -> tuple[int, int]:
        """Give n and k of a block that may flip at most so many weights.

        Args:
            most: weights that may still be flipped.

        Returns:
            n and k.
        """
        size = min(self.block_size, max(2, most))
        if self.pruned in (0, self.block_size):
            return size, min(size, self.pruned)
        share = 0.5 if self.pruned is None else self.pruned / self.block_size
        return size, min(max(1, round(share * size)), max(1, size - 1))


@dataclass(eq=False)
class Descent:
    """Exchanges blocks on one linearisation and carries mask, response and prediction along.

    Attributes:
        session: the network and the budget.
        selector: what each weight promises.
        order: which layers give the next block.
        solver: solves the blocks.
        stage: how many blocks, of what size.
        tape: the records of the linearisation's point.
        linearisation: the quadratic model of the loss.
        region: how far it is trusted.
        anchor: the mask at the linearisation's point.
        stamps: number of the last block each weight was in, by layer; changed in place.
        frozen: weights that never change, by layer.
        turn: blocks taken before.
        step: the step's number, for the seeds.
        mask: what is kept now.
        predicted: change of the mean loss so far by the model, nats.
        blocks: problems solved so far.
        gaps: `Solution.gap` of those that were solved with a lower bound.
    """

    session: Session
    selector: Selector
    order: LayerOrder
    solver: Solver
    stage: Stage
    tape: Tape
    linearisation: Linearisation
    region: Region
    anchor: Mask
    stamps: dict[str, Tensor]
    frozen: dict[str, Tensor]
    turn: int
    step: int
    mask: Mask = field(init=False)
    predicted: float = 0.0
    blocks: int = 0
    gaps: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin at the anchor."""
        self.mask = self.anchor.clone()
        self._gains: dict[str, Tensor] = {}
        self._looked = 0  # blocks before the one that gains were last predicted for
        self._draws = generator(self.session.seed, "order", self.step)

    def run(self, least: float) -> None:
        """Exchange blocks until none helps, the region is used up, or time is.

        Args:
            least: seconds that recording took: the guess for the first block, and for
                measuring the loss at the end.
        """
        sizes = {x.name: x.size for x in self.session.network.layers if x.name in self.tape.layers}
        patience = self.order.patience(len(sizes), self.selector.remembers)
        idle, longest = 0, least
        while self.blocks < self.stage.blocks and idle < patience:
            left = self.region.flips - self.mask.flips(self.anchor)
            if left < 2 or self.session.out_of_time(1.5 * longest + least):
                break
            begin = time.perf_counter()
            with self.session.timed("select"):
                block = self.next_block(sizes, *self.stage.shape(left))
            moved = self._exchange(block)
            idle = 0 if moved else idle + 1
            longest = max(longest, time.perf_counter() - begin)

    def next_block(self, sizes: Mapping[str, int], size: int, pruned: int) -> Block:
        """Choose layers, then the weights in them that promise most.

        Args:
            sizes: prunable weights of the layers to choose from.
            size: n, weights in the block, at most.
            pruned: k, how many of them are pruned ones.

        Returns:
            The block.
        """

        def pick(*names: str) -> Pick:
            gains = {name: self._gain(name) for name in names}
            return pick_pairs(gains, self.mask, self.session.budget, size, pruned)

        if self.blocks - self._looked >= self.stage.refresh:
            self._look_again()
        names = self.order.choose(sizes, self.turn, self._draws, lambda name: pick(name).promise)
        found = pick(*names)
        if found.promise <= 0 and self.blocks > self._looked:  # what is left may promise more by now
            self._look_again()
            found = pick(*names)
        self.turn += 1
        for name, index in found.block.indices.items():
            self.stamps[name].view(-1)[index] = self.turn
            self._gains[name].view(-1)[index] = -torch.inf  # exchanged once, until gains are predicted anew
        return found.block

    def _look_again(self) -> None:
        """Have gains predicted at the point reached: stamps, mask and response change with every block."""
        self._gains.clear()
        self._looked = self.blocks

    def _gain(self, name: str) -> Tensor:
        """Ask the selector once for each layer, until gains are predicted anew."""
        if name not in self._gains:
            self._gains[name] = self.selector.gain(
                LayerView(
                    name=name,
                    reference=self.session.network.reference[name],
                    mask=self.mask[name],
                    anchor=self.anchor[name],
                    stamps=self.stamps[name],
                    frozen=self.frozen[name],
                    tape=self.tape.layers[name],
                    linearisation=self.linearisation,
                    ridge=self.region.ridge,
                    multiplier=self.stage.multiplier,
                    generator=generator(self.session.seed, f"score/{name}", self.turn),
                )
            ).clone(memory_format=torch.contiguous_format)
        return self._gains[name]

    def _exchange(self, block: Block) -> bool:
        """Solve the block's problem and move there; say whether anything moved."""
        self.blocks += 1
        if block.size == 0:
            self.session.notice(NOTHING)
            return False
        pruned = ~block.gather(self.mask)
        reference = block.gather(self.session.network.reference)
        with self.session.timed("select"):
            model = self.linearisation.quadratic(block)
        with self.session.timed("solve"):
            problem = self.pose(block, model)
            seed = derive_seed(self.session.seed, "solver", self.turn)
            # A bound is worth reporting where the solver has one, not worth computing for the report.
            solution = self.solver.solve(problem, seed, certify=False)
        if solution.gap is not None:
            self.gaps.append(solution.gap)
        assignment = solution.assignment.to(pruned.device)
        delta = reference * (pruned.to(reference) - assignment.to(reference))
        if not bool(delta.any()):
            return False
        self.predicted += model.change(delta)
        self.linearisation.move(block, model, delta)
        for name, kept in block.split(~assignment).items():
            self.mask[name].view(-1)[block.indices[name]] = kept
        return True

    def pose(self, block: Block, model: QuadraticModel) -> BlockProblem:
        """Write a block's choice as a problem, at the point reached.

        Args:
            block: the weights.
            model: the quadratic model over them.

        Returns:
            The problem; its incumbent is what is pruned now.
        """
        budget, stage, region = self.session.budget, self.stage, self.region
        return model.problem(
            block.gather(self.session.network.reference),
            ~block.gather(self.mask),
            torch.cat([budget.groups(name, index) for name, index in block.indices.items()]),
            stage.multiplier,
            region.ridge,
            ~block.gather(self.anchor),
        )
