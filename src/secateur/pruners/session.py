"""What a pruner is given, and what it remembers from step to step."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.capture import capture, mean_gradient
from secateur.core.budget import Budget
from secateur.core.errors import SecateurError
from secateur.core.mask import Mask
from secateur.core.modes import evaluating
from secateur.core.ranks import as_rows, from_rows, mark_best
from secateur.core.score import Score
from secateur.core.seeds import generator
from secateur.core.signal import Signal
from secateur.core.tape import Tape
from secateur.core.task import Batch, Task, check_losses
from secateur.pruners.network import Network


@dataclass(eq=False)
class Session:
    """Everything outside a pruner that it works with.

    Attributes:
        network: the model and its reference weights.
        task: data and loss.
        budget: what each group keeps.
        seed: the seed of the run.
        out_of_time: says whether a further piece of work, of so many seconds, would exceed
            the time allowed.
        progress: steps done -> the share of the run's budget that is spent, None without a budget.
        clocked: whether the budget is one of seconds, so that steps may end by the clock.
        notice: tells the user something.
        seconds: seconds spent by activity.
        verified: whether a recorded gradient has been compared with autograd's.
        exact: whether the model has been found not to run in bfloat16.
    """

    network: Network
    task: Task
    budget: Budget
    seed: int
    out_of_time: Callable[[float], bool] = lambda _: False
    progress: Callable[[float], float | None] = lambda _: None
    clocked: bool = False
    notice: Callable[[str], None] = lambda _: None
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("capture", "select", "solve", "evaluate"), 0.0)
    )
    verified: bool = False
    exact: bool = False

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Add the time spent inside to an activity.

        Args:
            activity: ``"capture"``, ``"select"``, ``"solve"`` or ``"evaluate"``.

        Yields:
            Nothing.
        """
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] = self.seconds.get(activity, 0.0) + time.perf_counter() - begin

    def batch(self, index: Tensor) -> Batch:
        """Fetch calibration samples.

        Args:
            index: which.

        Returns:
            The batch, on the model's device.
        """
        return self.task.batch("calibration", index, self.network.device)

    def record(self, batch: Batch, needs: frozenset[Signal], step: int, draws: int = 1) -> Tape:
        """Run the model as it stands on a batch and record it.

        The first gradient of a session is compared with autograd's own, at the price of one
        backward pass, so that a model that is not what the tape takes it for is refused.

        Args:
            batch: the samples.
            needs: what to record.
            step: for the seed of sampled labels.
            draws: labels drawn for each sample.

        Returns:
            The tape.
        """
        labels = generator(self.seed, "labels", step)
        verify = not self.verified and needs != frozenset({Signal.INPUTS})
        with self.timed("capture"):
            model, layers = self.network.model, self.network.layers
            tape = capture(model, self.task, batch, layers, needs, labels, draws, verify=verify)
        self.verified |= verify
        return tape

    def gradient(self, index: Tensor, bfloat16: bool = False) -> tuple[float, dict[str, Tensor]]:
        """Differentiate the mean loss of some calibration samples at the model as it stands.

        Args:
            index: which samples.
            bfloat16: multiply matrices in bfloat16.

        Returns:
            The loss, nats a sample, and the gradient of each layer.
        """
        with self.timed("capture"):
            network, batch = self.network, self.batch(index)
            return mean_gradient(network.model, self.task, batch, network.layers, bfloat16)

    def fast_gradient(self, index: Tensor) -> tuple[float, dict[str, Tensor]]:
        """Give the same in bfloat16, or, from the first time that fails, in the model's own precision.

        A model may mix types in ways that autocast cannot follow (index_put, routing between experts).

        Args:
            index: which samples.

        Returns:
            The loss, nats a sample, and the gradient of each layer.
        """
        if not self.exact:
            try:
                return self.gradient(index, bfloat16=True)
            except (SecateurError, RuntimeError, TypeError, ValueError) as error:
                self.exact = not isinstance(error, torch.OutOfMemoryError)
                found = self.gradient(index)  # where that fails as well, bfloat16 was not the reason
                self.notice(
                    "the model does not run in bfloat16: mini-batches are passed in its own precision."
                )
                return found
        return self.gradient(index)

    def guard_loss(self, guard: Tensor) -> float | None:
        """Measure the mean loss of the guard samples at the start of a run.

        Args:
            guard: which samples.

        Returns:
            The loss, nats a sample; None without any.
        """
        if guard.numel() == 0:
            return None
        losses = self.losses(self.batch(guard))
        check_losses(losses, "guard samples of the calibration data")
        return float(losses.mean())

    @torch.no_grad()
    def losses(self, batch: Batch) -> Tensor:
        """Measure the loss of each sample of the model as it stands.

        Args:
            batch: the samples.

        Returns:
            The losses in float64, nats.
        """
        model = self.network.model
        with self.timed("evaluate"), evaluating(model):
            return self.task.losses(self.task.forward(model, batch), batch.targets).double()

    def mean_loss(self, batch: Batch) -> float:
        """Measure the mean loss of the model as it stands.

        Args:
            batch: the samples.

        Returns:
            The loss, nats a sample.
        """
        return float(self.losses(batch).mean())

    def one_shot(self, score: Score, batch: Batch) -> tuple[Mask, dict[str, Tensor]]:
        """Score the dense network and keep the best of each group, ties by position.

        Args:
            score: by what.
            batch: the samples for scores that need any.

        Returns:
            The mask, which meets the budget, and the scores.
        """
        network = self.network
        network.write(network.dense_mask())
        tape = self.record(batch, score.needs, 0) if score.needs else None
        draw = generator(self.seed, "score")
        with self.timed("select"):
            scores = {
                name: score(weight, tape.layers[name] if tape else None, draw)
                for name, weight in network.reference.items()
            }
            mask = keep_best(scores, self.budget)
        network.write(mask)
        return mask, scores


def keep_best(scores: dict[str, Tensor], budget: Budget) -> Mask:
    """Keep the highest-scored weights of each group, exactly as many as the budget says.

    Args:
        scores: a score for each weight, by layer.
        budget: the groups and their counts.

    Returns:
        The mask.
    """
    if budget.grouping == "global":  # here alone layers compete
        rows = torch.cat([values.reshape(-1) for values in scores.values()]).reshape(1, -1)
        pieces = mark_best(rows, budget.kept).reshape(-1).split([v.numel() for v in scores.values()])
        return Mask({n: p.reshape(scores[n].shape) for n, p in zip(scores, pieces, strict=True)})
    kept: dict[str, Tensor] = {}
    for name, values in scores.items():
        rows, start = as_rows(values, budget.grouping), budget.offset(name)
        best = mark_best(rows, budget.kept[start : start + len(rows)])
        kept[name] = from_rows(best, budget.grouping, values.shape)
    return Mask(kept)
