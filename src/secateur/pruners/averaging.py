"""Stages of averaged gradients: every mini-batch moves the score of every weight."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.layer import to_exclude
from secateur.core.mask import Mask
from secateur.pruners.batches import Batches
from secateur.pruners.best_mask import keep_best
from secateur.pruners.distillation import BYTES_A_WEIGHT, check_temperature
from secateur.pruners.guard import judged
from secateur.pruners.pruner import Outcome, State
from secateur.pruners.session import Session
from secateur.pruners.sizes import check_finite, mean_size, width

Unit = Literal["batch", "first"]
Anneal = Literal["linear", "cosine", "constant"]

_ANNEALED: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 + 0.5 * math.cos(math.pi * progress),
    "constant": lambda _: 1.0,
}
# A mini-batch is this share of the pool at most, so that its noise differs from step to step.
_SHARE = 16
# Over few data: those that have less than a sample for so many weights.
_PASSES = 5.0
_WEIGHTS = 64
# Mini-batches that a layer which affects the loss is in at least once.
_ENOUGH = 10
# Seconds after which a stage ends where the budget is one of seconds: between stages a run is shown, saved
# and can be stopped.
_LONGEST = 5.0


@dataclass(frozen=True)
class Averaging:
    """Moves the scores of all weights by averaged gradients; the mask keeps the best of each group.

    With w0 the reference weights, m the mask of the highest scores s in each group, and g the
    mean gradient of a mini-batch at the weights m * w0:

        v = w0 * g / c,   u <- b u + (1 - b) v,   s <- (1 - f) s - e h u

    b is the momentum, f what is forgotten, e the rate, and h falls from 1 to 0 over the time
    there is. Where that is enough to go through the data more often than `passes` times, e is smaller in
    proportion: what is learned from each sample in all is bounded, or else the mask would fit the samples
    rather than what they are samples of. To first order the loss falls by -w0 g if a weight is kept at its
    full size rather than pruned, whichever it is now, so that s sums up the evidence for keeping it. For b
    = f = 0 the mask is the exact minimiser, over the budget's masks, of the sum of all linear models seen
    so far and of a proximal term, |m - s_0|^2 / 2, which is linear as all those masks have the same norm
    (dual averaging: Nesterov 2009; Xiao 2010). Gradients at m * w0 that move the scores of all weights are a
    straight-through estimator (Bengio et al. 2013, arXiv:1308.3432; for masks Ramanujan et al. 2020,
    arXiv:1911.13299, and the movement scores of Sanh et al. 2020, arXiv:2005.07683).

    Scores begin at the one-shot scores over their mean size. The unit c makes the rate a number
    without unit:

    - ``"batch"``: the mean of |w0 g| over the weights that compete (each layer's, or the network's
      where one group spans it), anew for each mini-batch, so that neither the first gradients, which
      are large, nor the layers with large gradients lead the others;
    - ``"first"``: the mean of |w0 g| over the network in the first mini-batch, once for all, as in plain
      stochastic gradient descent.

    Memory beyond the model, its reference weights and autograd's graph: two numbers a weight between
    stages; within one their copies and a gradient, three more, and what ranking the scores of the largest
    layer takes, of the whole network where one group spans it. They are in float32, in float64 for a
    model in float64.

    Attributes:
        rate: e > 0, in mean scores a mini-batch.
        momentum: b, in [0, 1).
        forget: f, in [0, 1).
        unit: c, as above.
        anneal: how h falls with the share of the time spent: ``"linear"``, ``"cosine"``, ``"constant"``.
        samples: in a mini-batch; None = 500, or a sixteenth of the data where that is less.
        length: mini-batches in a stage, at the end of which the guard samples are looked at; under a
            budget of seconds a stage also ends after 5 s.
        horizon: mini-batches in all, for a run without a budget.
        temperature: T in (0, 100]; g is the gradient of the distance from the trained network's outputs then,
            T^2 KL(softmax(trained / T) || softmax(outputs / T)) (`Task.divergences`; Hinton et al. 2015,
            arXiv:1503.02531), and guard samples go by the loss all the same. None: the gradient of the loss.
        passes: over the data, beyond which the rate falls in proportion; None = 5 where there is less than a
            sample for 64 prunable weights, no bound otherwise; infinity = no bound.
        bfloat16: multiply matrices in bfloat16; None = where the hardware does so faster and the
            weights are in float32. Noise of mini-batches hides the rounding.

    Raises:
        SecateurError: a number out of range.
    """

    rate: float = 0.03
    momentum: float = 0.9
    forget: float = 1e-3
    unit: Unit = "batch"
    anneal: Anneal = "cosine"
    samples: int | None = None
    length: int = 50
    horizon: int = 2000
    bfloat16: bool | None = None
    passes: float | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.rate < math.inf:
            raise SecateurError(f"the rate of averaging must be positive and finite, not {self.rate}.")
        for name in ("momentum", "forget"):
            if not 0 <= getattr(self, name) < 1:
                raise SecateurError(f"{name} must lie in [0, 1), not {getattr(self, name)}.")
        for name in ("samples", "length", "horizon"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise SecateurError(f"{name} of averaging must be a whole number from 1, not {value}.")
        check_temperature(self.temperature, "averaging")
        if self.passes is not None and not self.passes > 0:
            raise SecateurError(f"passes of averaging must be positive, not {self.passes}.")
        for name, words in (("unit", get_args(Unit)), ("anneal", tuple(_ANNEALED))):
            if getattr(self, name) not in words:
                raise SecateurError(
                    f"{name} of averaging is one of {', '.join(words)}, not '{getattr(self, name)}'."
                )

    @property
    def bytes_a_weight(self) -> float:
        """Scores, velocities, their copies, gradients and masks, in float32; and weights put aside."""
        return 24.0 + (0.0 if self.temperature is None else BYTES_A_WEIGHT)

    def begin(
        self,
        session: Session,
        batches: Batches,
        mask: Mask,
        scores: Mapping[str, Tensor],
        frozen: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Give the first scores and velocities.

        Args:
            session: what to work with; the model's weights are those of the mask.
            batches: where the samples come from.
            mask: the one-shot mask.
            scores: what it was drawn by.
            frozen: weights that never change.

        Returns:
            s, infinite for frozen weights, and u = 0, by layer.
        """
        first: dict[str, Tensor] = {}
        for names in self._rivals(session, list(scores)):
            size = mean_size([scores[name] for name in names])
            kinds = {name: width(session.network.reference[name]) for name in names}
            first |= {name: (scores[name] / size).to(kinds[name]) for name in names}
        if self.unit == "first":  # the gradients' unit is put into the scores, once
            pool, _ = session.divided(batches)
            index, _ = batches.draws(pool, session.seed, (0, 0), self.size(pool.numel()), 1)
            sensitivity = self._sensitivity(session, index[0], 0)[1]
            unit = mean_size(list(sensitivity.values()))
            first = {name: score * unit for name, score in first.items()}
        for name, score in first.items():
            sure = torch.where(mask[name], torch.inf, -torch.inf).to(score)
            first[name] = torch.where(frozen[name], sure, score) if name in frozen else score
        return first, {name: torch.zeros_like(score) for name, score in first.items()}

    def least_samples(self, session: Session, batches: Batches) -> int:
        """Say how many samples a stage passes through the model at the least.

        Args:
            session: what to work with.
            batches: where the samples come from.

        Returns:
            Those of a mini-batch and of the guard.
        """
        pool, guard = session.divided(batches)
        return self.size(pool.numel()) + guard.numel() // 3  # which is passed forward only

    def progress(self, session: Session, state: State, at: int = 0, share: float = 1.0) -> float:
        """Say what part of its time averaging has used.

        Args:
            session: knows the budget of the run.
            state: the state before the stage.
            at: mini-batches done in the stage.
            share: of the run's budget that is for averaging.

        Returns:
            From 0; 1 or more when it is over.
        """
        spent = session.progress(state.step + at / self.length)
        done = (state.step * self.length + at) / self.horizon
        return done if spent is None else spent / share

    def stage(
        self, session: Session, state: State, batches: Batches, share: float = 1.0
    ) -> tuple[State, Outcome]:
        """Go through some mini-batches, then look at the guard samples.

        Args:
            session: what to work with.
            state: the state before.
            batches: where the samples come from.
            share: of the run's budget that is for averaging.

        Returns:
            The state after, and what happened.
        """
        pool, guard = session.divided(batches)
        size = self.size(pool.numel())
        draws, cursor = batches.draws(pool, session.seed, state.cursor, size, self.length)
        scores, velocity = _copied(state.scores), _copied(state.velocity)
        # The guard samples are passed forward only, a third of a mini-batch's work each.
        closing = guard.numel() / (3 * size)
        most = self._passes(session, pool.numel()) * pool.numel() / size
        losses = self._go_through(session, state, draws, scores, velocity, closing, share, most)
        check_finite(velocity)
        mask = self._project(session, scores)
        held = session.losses(guard) if guard.numel() else None
        after = replace(
            judged(state, mask, held),
            mask=mask,
            step=state.step + 1,
            cursor=cursor,
            scores=scores,
            velocity=velocity,
        )
        return after, Outcome(
            predicted=None,
            measured=None,
            loss=sum(losses) / len(losses),
            guard=after.guard,
            flips=mask.layer_flips(state.mask),
            blocks=0,
            samples=size * len(losses),
            ridge=state.region.ridge,
            accepted=True,
            phase="averaging",
        )

    def _go_through(
        self,
        session: Session,
        state: State,
        draws: list[Tensor],
        scores: dict[str, Tensor],
        velocity: dict[str, Tensor],
        closing: float,
        share: float,
        most: float,
    ) -> list[float]:
        """Move scores and velocities, in place, by one mini-batch after the other while there is time.

        Args:
            session: what to work with.
            state: the state before the stage.
            draws: the samples of each mini-batch.
            scores: s, by layer.
            velocity: u, by layer.
            closing: what ends the stage takes as long as so many mini-batches.
            share: of the run's budget that is for averaging.
            most: mini-batches that the rate is for; it is divided among more.

        Returns:
            The mean loss of each mini-batch, nats a sample.
        """
        losses: list[float] = []
        reached: set[str] = set()
        start, latest = time.perf_counter(), 0.0  # latest: seconds of the last mini-batch
        first = self.progress(session, state, 0, share)
        for at, index in enumerate(draws):
            begin, progress = time.perf_counter(), self.progress(session, state, at, share)
            late = session.clocked and begin - start > _LONGEST
            if losses and (late or progress >= 1 or session.out_of_time(latest * (1 + closing))):
                break
            self._project(session, scores)
            loss, sensitivity = self._sensitivity(session, index, state.step * self.length + at)
            losses.append(loss)
            reached |= sensitivity.keys()
            # The mini-batches of the whole run, as far as those of this stage tell, are 1 / each.
            each = (self.progress(session, state, at + 1, share) - first) / (at + 1)
            rate = self.rate * state.rate_factor * min(1.0, most * each)
            rate *= _ANNEALED[self.anneal](min(1.0, progress))
            with session.timed("select"):
                self._move(session, scores, velocity, sensitivity, rate)
            del sensitivity  # or it would be there beside the next one
            latest = time.perf_counter() - begin
        if state.step == 0 and len(losses) >= min(self.length, _ENOUGH):
            _check_reached(scores, reached)
        return losses

    def size(self, pool: int) -> int:
        """Give the samples of a mini-batch.

        Args:
            pool: samples to draw from.

        Returns:
            The number.
        """
        return min(pool, self.samples or max(1, min(500, pool // _SHARE)))

    def _passes(self, session: Session, pool: int) -> float:
        """Say how often the data may be gone through at the full rate."""
        weights = sum(layer.size for layer in session.network.layers)
        return self.passes or (_PASSES if _WEIGHTS * pool < weights else math.inf)

    def _rivals(self, session: Session, names: list[str]) -> list[list[str]]:
        """Give the layers whose weights compete with one another."""
        return [names] if session.budget.grouping == "global" else [[name] for name in names]

    def _project(self, session: Session, scores: dict[str, Tensor]) -> Mask:
        """Keep the best of each group, and write that to the model."""
        with session.timed("select"):
            mask = keep_best(scores, session.budget)
            session.network.write(mask)
        return mask

    def _sensitivity(self, session: Session, index: Tensor, number: int) -> tuple[float, dict[str, Tensor]]:
        """Give the loss of a mini-batch, and w0 * g by layer."""
        reference = session.network.reference
        loss, gradients = session.minibatch_gradient(index, number, self.bfloat16, self.temperature)
        return loss, {name: gradient.mul_(reference[name]) for name, gradient in gradients.items()}

    def _move(
        self,
        session: Session,
        scores: dict[str, Tensor],
        velocity: dict[str, Tensor],
        sensitivity: dict[str, Tensor],
        rate: float,
    ) -> None:
        """Move scores and velocities by one mini-batch, in place; a layer that it did not reach has no v."""
        for names in self._rivals(session, list(scores)):
            pieces = [sensitivity[name] for name in names if name in sensitivity]
            unit = mean_size(pieces) if pieces and self.unit == "batch" else 1.0
            for name in names:
                velocity[name].mul_(self.momentum)
                if name in sensitivity:
                    velocity[name].add_(sensitivity[name].mul_((1 - self.momentum) / unit))
                if self.forget:
                    scores[name].mul_(1 - self.forget)
                scores[name].add_(velocity[name], alpha=-rate)


def _check_reached(scores: dict[str, Tensor], reached: set[str]) -> None:
    """Refuse a layer that no mini-batch of the first stage reached: nothing can be said of its weights."""
    for name in scores.keys() - reached:
        raise SecateurError(f"layer '{name}' does not affect the loss: {to_exclude(name)}")


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors by name: a step never changes the state it was given."""
    return {name: tensor.clone() for name, tensor in tensors.items()}
