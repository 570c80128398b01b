"""The abstract part that gives a network."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import nn

from secateur.core.seeds import derive_seed
from secateur.core.task import Task


class Model(ABC):
    """Where a network comes from: a frozen dataclass whose fields say which, and with which weights."""

    part_name: ClassVar[str] = "model"

    @abstractmethod
    def build(self, task: Task | None = None) -> nn.Module:
        """Build the network.

        Args:
            task: the data that the network is for; only parts that train need it.

        Returns:
            The network, on the CPU, in evaluation mode.
        """


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Seed torch's global generator for a while, since modules draw their weights from nowhere else.

    Args:
        seed: the seed.
        purpose: what is drawn.

    Yields:
        Nothing; afterwards the generator is where it was.
    """
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive_seed(seed, purpose))
        yield
