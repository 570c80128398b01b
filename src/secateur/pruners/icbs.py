"""The iterative Combinatorial Brain Surgeon: block coordinate descent over the mask."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from secateur.core.block import Block
from secateur.core.curvature import Curvature
from secateur.core.errors import SecateurError
from secateur.core.limit import Limit
from secateur.core.mask import Mask
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.score import Score
from secateur.core.selector import LayerOrder, Selector
from secateur.core.solver import Solver
from secateur.curvature import EmpiricalFisher, Fisher
from secateur.pruners.averaging import Averaging
from secateur.pruners.batches import Batches
from secateur.pruners.descent import NOTHING, Descent, Stage
from secateur.pruners.guard import compared
from secateur.pruners.pruner import Outcome, Pruner, State
from secateur.pruners.session import Session
from secateur.pruners.start import one_shot_state
from secateur.pruners.trust import Trust
from secateur.scores import Gradient, Magnitude
from secateur.selection import AllLayers, Boundary, Fixed, GaussSouthwell, LogSize, Tabu
from secateur.solvers import Annealing, Default

# Stages in a row without a better mask or a larger batch after which a run has converged.
PATIENCE = 6

IDLE = (
    "the whole budget goes to averaged gradients, so that no block is exchanged: set share below 1 (0 for "
    "blocks alone) to have the selector, order, curvature, solver, stage and trust chosen used (what Fixed "
    "freezes stays frozen anyway)."
)


@register("pruner", "icbs")
@dataclass(frozen=True)
class ICBS(Pruner):
    """iCBS by stages; with one block a stage, no averaging and no trust region, iCBS as published.

    Draw a one-shot mask. Then come stages of averaged gradients (`Averaging`), which take the given share
    of the budget, all by default; then stages of blocks: record a batch; on that one linearisation of
    the loss exchange block after block, each a cardinality-constrained binary quadratic
    problem, carrying the response of the samples along; measure the loss; keep the stage or
    undo it, and trust the next linearisation more or less (Rosenberg et al. 2024,
    arXiv:2411.17796; the stages are ours, see docs/method.md).

    Attributes:
        init: the score of the one-shot mask.
        selector: what each weight promises.
        order: which layers give the next block.
        curvature: the Hessian's stand-in.
        solver: solves the blocks.
        stage: how many blocks on one linearisation, of what size.
        batches: which samples a stage sees.
        trust: how far a linearisation is trusted.
        averaging: the stages of averaged gradients that come first.
        share: of the run's budget that is theirs, in [0, 1]; 0 = none at all. Without a budget they take
            their `horizon`.

    Raises:
        SecateurError: the share is out of range, or 0 while averaging is to distil.
    """

    init: Score = field(default_factory=Magnitude)
    selector: Selector = field(default_factory=GaussSouthwell)
    order: LayerOrder = field(default_factory=AllLayers)
    curvature: Curvature = field(default_factory=Fisher)
    solver: Solver = field(default_factory=Default)
    stage: Stage = field(default_factory=Stage)
    batches: Batches = field(default_factory=Batches)
    trust: Trust = field(default_factory=Trust)
    averaging: Averaging = field(default_factory=Averaging)
    share: float = 1.0

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 <= self.share <= 1:
            raise SecateurError(f"the share of averaging must lie in [0, 1], not {self.share}.")
        if self.share == 0 and self.averaging.temperature is not None:
            raise SecateurError(
                "averaging has a temperature, but share = 0 leaves it no time, and blocks go by the loss: "
                "raise the share, or leave the temperature out."
            )

    @classmethod
    def published(cls) -> "ICBS":
        """Give the published settings for the Garment Classifier (arXiv:2411.17796).

        Returns:
            One block of 1,024 a step, selected by gradient near the boundary, fixed
            fractions .42 / .35, tabu .40, annealing, 200 samples a step.
        """
        return cls(
            selector=Tabu(Fixed(Boundary(Gradient()), pruned=0.42, kept=0.35), fraction=0.4),
            order=LogSize(),
            curvature=EmpiricalFisher(),
            solver=Annealing(),
            stage=Stage(blocks=1, block_size=1024, pruned=512, multiplier=0.75),
            batches=Batches(size=200, growth=1.0, guard=0),
            trust=Trust(ridge=1e-3, adapt=False),
            share=0.0,
        )

    @property
    def default_limit(self) -> Limit:
        """Without a trust region nothing tells convergence: ten epochs of 300 steps, as published."""
        judged = self.trust.adapt or (self.share > 0 and self.batches.guard != 0)
        return Limit() if judged else Limit(steps=3000)

    @property
    def bytes_a_weight(self) -> float:
        """Scores, velocities, their copies and gradients; or stamps and gradients of blocks; and masks."""
        return self.averaging.bytes_a_weight if self.share > 0 else 12.0

    @property
    def distils(self) -> bool:
        """Whether averaging does."""
        return self.share > 0 and self.averaging.temperature is not None

    def gradient_samples(self, session: Session) -> int:
        """Those of a mini-batch, or of the first batch that blocks see."""
        pool, _ = session.divided(self.batches)
        averaged = self.averaging.size(pool.numel()) if self.share > 0 else 0
        return max(averaged, self.batches.first_size(pool.numel()) if self._exchanges(session) else 0)

    def records(self, session: Session, *, least: bool) -> int:
        """The bytes of the tape of all layers, or of the largest; 0 where averaging is all."""
        if not self._exchanges(session):
            return 0
        pool, _ = session.divided(self.batches)
        samples = self.batches.first_size(pool.numel())
        sizes = [session.record_bytes(x, samples, self.curvature.draws) for x in session.network.layers]
        return max(sizes) if least else sum(sizes)

    def _exchanges(self, session: Session) -> bool:
        """Say whether blocks are exchanged at all."""
        return self.share < 1 or session.progress(0.0) is None

    def warm_up(self, limit: Limit | None = None) -> None:
        """Have the solver's kernels compiled, unless averaging will take up the whole budget."""
        if self.share < 1 or limit is None or limit == Limit():
            self.solver.warm_up(self.stage.block_size)

    def least_samples(self, session: Session, state: State) -> int:
        """Say how many samples the next stage passes through the model at the least."""
        if self._averages(session, state):
            return self.averaging.least_samples(session, self.batches)
        return state.samples

    def start(self, session: Session) -> State:
        """Draw the one-shot mask and freeze the surest weights.

        Args:
            session: what to work with.

        Returns:
            The state before the first stage.
        """
        state, scores = one_shot_state(session, self.init, self.batches)
        if self._unused(session):
            session.notice(IDLE)
        state = replace(
            state,
            region=self.trust.start(sum(m.numel() for m in state.mask.values())),
            frozen={n: self.selector.freeze(m, scores[n]) for n, m in state.mask.items()},
        )
        if self.share == 0:
            return state
        evidence, velocity = self.averaging.begin(session, self.batches, state.mask, scores, state.frozen)
        return replace(state, scores=evidence, velocity=velocity)

    def step(self, session: Session, state: State) -> tuple[State, Outcome]:
        """Run one stage.

        Args:
            session: what to work with.
            state: the state before.

        Returns:
            The state after, and what happened.
        """
        if self._averages(session, state):
            return self.averaging.stage(session, state, self.batches, self.share)
        if self.share == 0 or state.exchanging:
            return self._exchange(session, state)
        return self._begin_exchange(session, state)

    def _begin_exchange(self, session: Session, state: State) -> tuple[State, Outcome]:
        """Exchange the first blocks after averaging, from the best mask; end where that cannot be."""
        session.network.write(state.best)
        state = replace(
            state,
            mask=state.best,
            guard=state.best_guard,
            scores={},
            velocity={},
            exchanging=True,
        )
        try:
            return self._exchange(session, state)
        except SecateurError as error:  # a tape needs more of a model than gradients do
            session.network.write(state.best)
            session.notice(f"no blocks follow the averaged gradients: {error}")
            return replace(state, step=state.step + 1, done=True), Outcome(
                predicted=None, measured=None, loss=math.nan if state.guard is None else state.guard,
                guard=state.guard, flips={}, blocks=0, samples=state.samples, ridge=state.region.ridge,
                accepted=True,
            )  # fmt: skip

    def _unused(self, session: Session) -> bool:
        """Say whether parts were chosen that only blocks use, and the budget leaves none."""
        parts = ("selector", "order", "curvature", "solver", "stage", "trust")
        chosen = any(getattr(self, name) != getattr(ICBS(), name) for name in parts)
        return chosen and self.share == 1 and session.progress(0.0) is not None

    def _averages(self, session: Session, state: State) -> bool:
        """Say whether the next stage is one of averaged gradients."""
        if self.share == 0 or state.exchanging:
            return False
        return self.averaging.progress(session, state, share=self.share) < 1

    def _exchange(self, session: Session, state: State) -> tuple[State, Outcome]:
        """Exchange blocks on one linearisation, measure, and keep or undo."""
        before = session.seconds["capture"]
        index, guard, cursor = self._samples(session, state)
        descent = self._linearised(session, state, index)
        descent.run(least=session.seconds["capture"] - before)
        session.network.write(descent.mask)
        error = self._error(session, state, descent)
        measured = session.mean_loss(index) - descent.tape.loss if error is None else error
        flips = descent.mask.flips(state.mask)
        accepted = self.trust.accepts(measured) or flips == 0
        if not accepted:
            session.network.write(state.mask)
        after = replace(
            state,
            mask=descent.mask if accepted else state.mask,
            step=state.step + 1,
            turn=descent.turn,
            cursor=cursor,
            stamps=descent.stamps,
            region=self.trust.judge(state.region, descent.predicted, measured, flips),
        )
        moved = accepted and flips > 0
        loss = session.mean_loss(guard) if guard.numel() and moved else state.guard
        pool, _ = session.divided(self.batches)
        grown = self.batches.grown(state.samples, pool.numel())
        # The guard samples speak of the loss: of another objective they need to share the sign alone.
        gain = measured if error is None else 0.0
        after = compared(state, after, gain if moved else None, loss, grown)
        converged = (self.trust.adapt or self.share > 0) and after.stall >= PATIENCE
        outcome = Outcome(
            predicted=descent.predicted,
            measured=measured,
            loss=descent.tape.loss + (measured if accepted and error is None else 0.0),
            guard=loss,
            flips=after.mask.layer_flips(state.mask),
            blocks=descent.blocks,
            samples=index.numel(),
            ridge=state.region.ridge,
            accepted=accepted,
            gap=max(descent.gaps, default=None),
        )
        return replace(after, done=converged), outcome

    def _error(self, session: Session, state: State, descent: Descent) -> float | None:
        """Measure the change of the curvature's objective, where that is not the loss."""
        before, after = (session.network.displacement(mask) for mask in (state.mask, descent.mask))
        return self.curvature.measured(descent.tape, before, after)

    def pose(
        self, session: Session, state: State, layers: Sequence[str] = (), size: int | None = None
    ) -> tuple[Block, BlockProblem]:
        """Pose the first block problem of the next step, without solving it.

        Args:
            session: what to work with; the model's weights are those of the state's mask.
            state: the state before the step.
            layers: where the block may be taken from; all where none is named.
            size: n, at most; None: the stage's block size.

        Returns:
            The block, and its problem.

        Raises:
            SecateurError: there is nothing to exchange.
        """
        index, _, _ = self._samples(session, state)
        descent = self._linearised(session, state, index)
        sizes = {layer.name: layer.size for layer in session.network.layers}
        stage = self.stage if size is None else self.stage.resized(size)
        chosen = {name: sizes[name] for name in layers or sizes}
        block = descent.next_block(chosen, *stage.shape(stage.block_size))
        if block.size == 0:
            raise SecateurError(f"there is nothing to exchange in {' and '.join(chosen)}: {NOTHING}")
        return block, descent.pose(block, descent.linearisation.quadratic(block))

    def _linearised(self, session: Session, state: State, index: Tensor) -> Descent:
        """Record a batch, and stand at the beginning of a stage."""
        with session.timed("capture"):
            batch = session.batch(index)
        tape = session.record(
            batch,
            self.curvature.needs | self.selector.needs,
            state.step,
            self.curvature.draws,
            session.recorded(state.step, index.numel(), self.curvature.draws),
        )
        return Descent(
            session, self.selector, self.order, self.solver, self.stage,
            tape=tape,
            linearisation=self.curvature.linearise_from(tape, session.network.displacement(state.mask)),
            region=state.region,
            anchor=state.mask,
            stamps={n: s.clone() for n, s in (state.stamps or _stamps(state.mask)).items()},
            frozen=state.frozen,
            turn=state.turn,
            step=state.step,
        )  # fmt: skip

    def _samples(self, session: Session, state: State) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Draw the stage's samples; name the guard samples, and the place in the stream."""
        pool, guard = session.divided(self.batches)
        index, cursor = self.batches.draw(pool, session.seed, state.cursor, state.samples)
        return index, guard, cursor


def _stamps(mask: Mask) -> dict[str, Tensor]:
    """Say of all weights that they have been in no block."""
    return {name: torch.zeros_like(m, dtype=torch.int32) for name, m in mask.items()}
