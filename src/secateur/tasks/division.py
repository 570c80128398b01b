"""Which samples calibrate and which evaluate."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.seeds import generator
from secateur.core.task import Split
from secateur.tasks.samples import Labelled, Normalisation, Samples


@dataclass(frozen=True, eq=False)
class Plan:
    """Which samples to take.

    Attributes:
        calibration: positions in the calibration pile, ascending.
        evaluation: positions in the evaluation pile, or in the one pile there is.
        disjoint: False where both parts are the same pile.
    """

    calibration: Int[Tensor, " c"]
    evaluation: Int[Tensor, " e"]
    disjoint: bool


@dataclass(frozen=True)
class Division:
    """How samples are divided into calibration and evaluation, and how many are taken.

    Attributes:
        evaluation_fraction: the part of the samples set aside for evaluation, in [0, 1), where the
            data have no evaluation part of their own; 0: evaluate on the calibration data.
        limit: calibration samples to take, drawn at random; None: all.
        evaluation_limit: evaluation samples to take, likewise.
        seed: of both draws.
        ordered: draw nothing at random: the last samples are set aside for evaluation, and limits take the
            first. For data in no order, so that others can divide them alike.
    """

    evaluation_fraction: float = 0.2
    limit: int | None = None
    evaluation_limit: int | None = None
    seed: int = 0
    ordered: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SecateurError: one is out of range.
        """
        if not 0 <= self.evaluation_fraction < 1:
            raise SecateurError(
                f"evaluation_fraction is {self.evaluation_fraction}, but a fraction from 0 (evaluate on the "
                "calibration data) to below 1 is needed, such as 0.2."
            )
        for name, limit in (("limit", self.limit), ("evaluation_limit", self.evaluation_limit)):
            if limit is not None and limit < 1:
                raise SecateurError(
                    f"{name} is {limit}: ask for at least 1 sample, or leave it out to take all."
                )

    def plan(self, size: int, evaluation_size: int | None, origin: str) -> Plan:
        """Decide before anything is decoded which samples are taken.

        Args:
            size: samples in the pile that calibrates.
            evaluation_size: samples in a separate evaluation pile; None where there is none.
            origin: where the data come from, for the message.

        Returns:
            The positions to take.
        """
        calibration, evaluation = self._piles(size, evaluation_size, origin)
        return Plan(
            self._draw(calibration, self.limit, "calibration", origin),
            self._draw(evaluation, self.evaluation_limit, "evaluation", origin),
            evaluation_size is not None or self.evaluation_fraction > 0,
        )

    def divide(
        self,
        pile: Labelled,
        evaluation: Labelled | None,
        normalisation: Normalisation | None,
        origin: str,
        class_names: tuple[str, ...] = (),
    ) -> Samples:
        """Divide samples that are in memory.

        Args:
            pile: what calibrates, and evaluates too where there is nothing else.
            evaluation: a separate evaluation pile; None where there is none; `pile` itself where
                the same samples are to evaluate.
            normalisation: of each batch.
            origin: where the data come from, for messages.
            class_names: names of the classes.

        Returns:
            The samples.
        """
        plan = self.plan(len(pile), None if evaluation is None else len(evaluation), origin)
        return Samples(
            pile.select(plan.calibration),
            (pile if evaluation is None else evaluation).select(plan.evaluation),
            class_names,
            normalisation,
            plan.disjoint and evaluation is not pile,
            origin,
        )

    def _piles(self, size: int, evaluation_size: int | None, origin: str) -> tuple[Tensor, Tensor]:
        """Give the positions each part may draw from."""
        everything = torch.arange(size)
        if evaluation_size is not None:
            return everything, torch.arange(evaluation_size)
        if self.evaluation_fraction == 0:
            return everything, everything
        count = round(self.evaluation_fraction * size)
        if count in (0, size):
            raise SecateurError(
                f"an evaluation_fraction of {self.evaluation_fraction} of the {size} samples in {origin} "
                "leaves nothing for calibration or for evaluation: give more samples or another fraction."
            )
        if self.ordered:
            return everything[: size - count], everything[size - count :]
        order = torch.randperm(size, generator=generator(self.seed, "division"))
        return order[count:].sort().values, order[:count].sort().values

    def _draw(self, pile: Tensor, limit: int | None, split: Split, origin: str) -> Tensor:
        """Take a number of positions, unless ordered at random: files often come sorted by class."""
        if limit is None or limit == pile.numel():
            return pile
        if limit > pile.numel():
            name = "limit" if split == "calibration" else "evaluation_limit"
            raise SecateurError(
                f"{name} asks for {limit} {split} samples, but {origin} gives only {pile.numel()}: "
                "lower it, or leave it out to take all."
            )
        if self.ordered:
            return pile[:limit]
        order = torch.randperm(pile.numel(), generator=generator(self.seed, f"limit/{split}"))
        return pile[order[:limit].sort().values]
