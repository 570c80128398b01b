"""Which calibration samples a step sees."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.seeds import generator


@dataclass(frozen=True)
class Batches:
    """Batches from shuffled epochs, and a guard set that no batch contains.

    Attributes:
        size: samples of the first batch; None = 2,000, or all there are.
        growth: factor by which the batch grows when a stage's gain does not carry over to
            the guard samples; 1 = never.
        largest: samples of the largest batch.
        guard: samples held back to judge masks by; None = a fifth of the data, at most
            2,000; 0 = none.

    Raises:
        SecateurError: a number out of range.
    """

    size: int | None = None
    growth: float = 1.5
    largest: int = 16_000
    guard: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.size is not None and self.size < 1:
            raise SecateurError(f"the batch size must be at least 1, not {self.size}.")
        if self.growth < 1:
            raise SecateurError(f"batches cannot shrink: growth must be at least 1, not {self.growth}.")
        if self.largest < 1:
            raise SecateurError(f"the largest batch must hold at least 1 sample, not {self.largest}.")
        if self.guard is not None and self.guard < 0:
            raise SecateurError(f"the number of guard samples cannot be negative: {self.guard}.")

    def split(
        self, total: int, seed: int, ordered: bool = False
    ) -> tuple[Int[Tensor, " p"], Int[Tensor, " g"]]:
        """Divide the calibration samples into a pool for batches and a guard set.

        Args:
            total: calibration samples.
            seed: the seed of the run.
            ordered: whether neighbours resemble one another, so that the guard is taken in one piece: samples
                from between those of the pool would not notice that masks are fitted to it.

        Returns:
            The pool and the guard set.

        Raises:
            SecateurError: too few samples for a batch.
        """
        guard = min(2000, total // 5) if self.guard is None else self.guard
        if total == 0:
            raise SecateurError("there are no calibration samples: give the task some data.")
        if total - guard < (self.size or 1):
            raise SecateurError(
                f"{total} calibration samples, {guard} of them held back as guard, are fewer than a batch of "
                f"{self.size or 1}: lower the batch size or the guard, or give more data."
            )
        draw = generator(seed, "guard")
        if ordered:
            begin = int(torch.randint(total, (1,), generator=draw))
            order = torch.arange(begin, begin + total) % total
        else:
            order = torch.randperm(total, generator=draw)
        return order[guard:].sort()[0], order[:guard].sort()[0]

    def first_size(self, pool: int) -> int:
        """Give the size of the first batch.

        Args:
            pool: samples to draw from.

        Returns:
            The size.
        """
        return min(pool, self.size or 2000)

    def grown(self, size: int, pool: int) -> int:
        """Give the next larger size.

        Args:
            size: the size now.
            pool: samples to draw from.

        Returns:
            The size, at most the pool and `largest`; never smaller than now.
        """
        return max(size, min(math.ceil(size * self.growth), self.largest, pool))

    def draw(
        self, pool: Int[Tensor, " p"], seed: int, cursor: tuple[int, int], size: int
    ) -> tuple[Int[Tensor, " s"], tuple[int, int]]:
        """Take the next samples of the shuffled stream.

        What is left of an epoch and too short for a batch is dropped, so that no sample is
        twice in a batch.

        Args:
            pool: samples to draw from.
            seed: the seed of the run.
            cursor: epoch and position in it.
            size: how many.

        Returns:
            The samples and the cursor after them.
        """
        found, after = self.draws(pool, seed, cursor, size, 1)
        return found[0], after

    def draws(
        self, pool: Int[Tensor, " p"], seed: int, cursor: tuple[int, int], size: int, count: int
    ) -> tuple[list[Int[Tensor, " s"]], tuple[int, int]]:
        """Take several batches in a row.

        Args:
            pool: samples to draw from.
            seed: the seed of the run.
            cursor: epoch and position in it.
            size: samples in each.
            count: how many batches.

        Returns:
            The samples of each, and the cursor after them.
        """
        epoch, at = cursor
        order, found = None, []
        for _ in range(count):
            if at + size > pool.numel():
                epoch, at, order = epoch + 1, 0, None
            if order is None:
                order = torch.randperm(pool.numel(), generator=generator(seed, "epoch", epoch))
            found.append(pool[order[at : at + size]])
            at += size
        return found, (epoch, at)
