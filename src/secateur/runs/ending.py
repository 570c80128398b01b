"""The end of a run: what is done to a network once its mask is found, and what of it is kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.errors import FULL, SecateurError
from secateur.core.mask import Mask
from secateur.export import is_pretrained, save_checkpoint, save_pretrained
from secateur.pruners import Recalibrated, Recalibration, Refit, Session, State
from secateur.runs.clock import Clock
from secateur.runs.folder import STATISTICS, WEIGHTS, RunFolder

# What follows the mask must not take it away.
_FAILURES = (SecateurError, RuntimeError, ArithmeticError, ValueError)
_INSTEAD = {
    "recalibration": "have a refit follow (masks that were found step by step suit the trained statistics)",
    "refit": "take one that serves the loss, such as gradient",
}


@dataclass(frozen=True, eq=False)
class Run:
    """What a run gave.

    Attributes:
        model: the model that was given, now pruned.
        mask: what is kept.
        report: the figures, as in report.json.
        folder: the run folder, None where none was written.
    """

    model: nn.Module
    mask: Mask
    report: dict[str, Any]
    folder: Path | None


@dataclass(frozen=True, eq=False)
class Made:
    """What a network has become.

    Attributes:
        mask: what is kept.
        weights: by layer, where kept weights are not the trained ones any more.
        statistics: of BatchNorm layers, by name in the state_dict; empty where they are the trained ones.
        refit: what gave the kept weights their values, or chose them; None: nothing did.
        refit_flips: weights in which its mask differs from the one before, by layer.
        recalibrated: what gave the statistics; None: nothing did.
    """

    mask: Mask
    weights: dict[str, Tensor]
    statistics: dict[str, Tensor]
    refit: Refit | None
    refit_flips: dict[str, int]
    recalibrated: Recalibrated | None


@dataclass(eq=False)
class Ending:
    """Writes the mask, recalibrates, refits and evaluates; what fails leaves the network as it was before.

    Attributes:
        session: what the run works with.
        refit: what is done to the kept weights, or which are kept; None: nothing.
        recalibration: how statistics of BatchNorm are estimated anew; None: they stay.
        evaluate: measures the network on the evaluation data under the name of a subject.
        notice: tells the user something.
    """

    session: Session
    refit: Refit | None
    recalibration: Recalibration | None
    evaluate: Callable[[str], dict[str, float]]
    notice: Callable[[str], None]

    @property
    def alone(self) -> bool:
        """Whether the mask is all there is."""
        return self.refit is None and self.recalibration is None

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated at the end."""
        return 1 + (self.refit is not None) + (self.recalibration is not None)

    def held_back(self, seconds: float, limit: float | None) -> float:
        """Say how much time is kept for recalibration and refit.

        Args:
            seconds: that a sample takes in a forward pass.
            limit: of the run, seconds; None without a bound on time.

        Returns:
            Seconds: the share of the refit; one sweep, and others in a tenth of the limit.
        """
        if limit is None:
            return 0.0
        kept = self.refit.share * limit if self.refit is not None else 0.0
        if self.recalibration is not None:
            samples, sweeps = self.recalibration.passed(self.session)
            sweep = 1.5 * seconds * samples
            kept += sweep + min((sweeps - 1) * sweep, 0.1 * limit)
        return kept

    def come_to(self, state: State, clock: Clock, closing: float) -> Made:
        """Make of the network what the run was for.

        Args:
            state: has the best mask.
            clock: of the run; what it keeps back is released as it is used.
            closing: seconds that evaluations and files take after that.

        Returns:
            What it has become.

        Raises:
            SecateurError: the network does not hold what was written to it.
        """
        network, mask, weights = self.session.network, state.best, state.weights
        share = self.refit.share if self.refit is not None else 0.0
        network.write(mask, weights)
        loss = None if self.alone else self.evaluate("masked").get("loss")
        recalibrated, refitted = None, False
        if self.recalibration is not None:
            clock.reserve = closing + share * (clock.limit.seconds or 0.0)
            recalibrated = self._recalibrate(self.recalibration)
            if recalibrated is not None and self.refit is not None:
                loss = self._judge("recalibration", loss, "recalibrated")
        if self.refit is not None:
            clock.reserve = closing
            mask, weights, refitted = self._refit(self.refit, mask, weights)
        self._judge("recalibration" if self.refit is None else "refit", loss, "pruned")
        made = Made(
            mask,
            weights,
            {} if recalibrated is None else {key: x.clone() for key, x in network.statistics.items()},
            self.refit if refitted else None,
            mask.layer_flips(state.best),
            recalibrated,
        )
        if recalibrated is None and not network.has_trained_statistics():
            network.restore_statistics()
            self.notice(
                "the model's forward pass changes running statistics of BatchNorm, as in training mode: they "
                "were put back, and losses depend on which samples pass together."
            )
        if not (self.session.budget.is_met_by(mask) and network.holds(mask, made.weights)):
            raise SecateurError(
                "the model's weights are not those of a mask that meets the budget: something changes them "
                "in its forward pass, or this is a bug, please report it."
            )
        return made

    def _recalibrate(self, recalibration: Recalibration) -> Recalibrated | None:
        """Estimate the statistics anew; None where that failed, and they are the trained ones."""
        network = self.session.network
        try:
            with self.session.timed("recalibrate"):
                return recalibration(self.session)
        except _FAILURES as error:
            network.restore_statistics()
            self.notice(
                "the recalibration failed, and the statistics of BatchNorm layers are the trained ones: "
                f"{_said(error)}"
            )
            return None

    def _refit(
        self, refit: Refit, mask: Mask, weights: dict[str, Tensor]
    ) -> tuple[Mask, dict[str, Tensor], bool]:
        """Give the mask and the weights after a refit, and say whether there was one or it failed."""
        network = self.session.network
        try:
            with self.session.timed("refit"):
                kept, changed = refit(self.session, mask, weights)
            found = {**weights, **changed}
            bad = [name for name, weight in found.items() if not torch.isfinite(weight[kept[name]]).all()]
            if bad:
                raise SecateurError(f"weights of layer '{bad[0]}' became NaN or infinite.")
            if not self.session.budget.is_met_by(kept):
                raise SecateurError("it gave a mask that does not meet the budget, which is a mistake in it.")
        except _FAILURES as error:
            network.write(mask, weights)
            self.notice(
                "the refit failed, and mask and weights are as they were before it (a smaller rate, more "
                f"damping or another refit may do): {_said(error)}"
            )
            return mask, weights, False
        found = {name: torch.where(kept[name], w, 0).to(network.reference[name]) for name, w in found.items()}
        network.write(kept, found)
        return kept, found, True

    def _judge(self, what: str, before: float | None, subject: str) -> float | None:
        """Evaluate the network, and say so where what was done to it did harm."""
        after = self.evaluate(subject).get("loss")
        if before is not None and after is not None and after > before:
            self.notice(
                f"the {what} made the loss larger ({before:.4g} before, {after:.4g} after): leave it out, or "
                f"{_INSTEAD[what]}."
            )
        return after


def _said(error: Exception) -> str:
    """Say what went wrong; what torch says of a full GPU is of no help."""
    return FULL if isinstance(error, torch.OutOfMemoryError) else str(error)


def save_outcome(folder: RunFolder, made: Made) -> None:
    """Write what a run found beside the model it began with.

    Args:
        folder: the run folder.
        made: what the network has become.
    """
    folder.save_mask(made.mask)
    folder.save_tensors(WEIGHTS, made.weights)
    folder.save_tensors(STATISTICS, made.statistics)


def save_pruned(folder: RunFolder, session: Session, mask: Mask) -> None:
    """Write the pruned model, one of transformers as a checkpoint folder of its own.

    Args:
        folder: the run folder.
        session: has the model, and the task, whose tokenizer or image processor is saved beside it.
        mask: what is kept.
    """
    model = session.network.model
    if is_pretrained(model):
        tokenizer, processor = (getattr(session.task, name, None) for name in ("tokenizer", "processor"))
        save_pretrained(model, folder.path / "model", tokenizer=tokenizer, processor=processor, mask=mask)
    else:
        save_checkpoint(model, folder.path / "model.safetensors", mask=mask)
