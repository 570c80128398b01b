"""The abstract refit: new values for the weights that are kept."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from secateur.core.mask import Mask
from secateur.core.task import Task
from secateur.pruners.network import Network
from secateur.pruners.session import Session


class Refit(ABC):
    """Changes the kept weights after the mask is found, or which are kept. Its fields are its settings."""

    part_name: ClassVar[str] = "refit"

    def check(self, network: Network, task: Task) -> None:
        """Refuse, before a run begins, what it could not refit at the end; by default nothing.

        Args:
            network: what is pruned.
            task: data and loss.
        """
        return

    def warm_up(self) -> None:
        """Do what takes time once in a process, before the clock of a run starts; nothing, by default."""
        return

    @property
    def chooses(self) -> bool:
        """Whether it chooses anew which weights are kept, as many in each group as the mask keeps there."""
        return False

    @property
    def share(self) -> float:
        """What part of a budget of seconds is held back for it, in [0, 1)."""
        return 0.0

    @property
    def bytes_a_weight(self) -> float:
        """What it keeps for each prunable weight while it runs."""
        return 4.0

    @property
    def distils(self) -> bool:
        """Whether mini-batches are compared with the trained network, whose outputs are held meanwhile."""
        return False

    def gradient_samples(self, session: Session) -> int:
        """Say of how many samples together gradients are wanted, at most: of none, by default."""
        return 0

    def records(self, session: Session, *, least: bool) -> int:
        """Say how many bytes of records it holds beside passes: none, by default."""
        return 0

    @abstractmethod
    def __call__(
        self, session: Session, mask: Mask, weights: Mapping[str, Tensor]
    ) -> tuple[Mask, dict[str, Tensor]]:
        """Refit the kept weights; the model holds them, masked, and may be written to meanwhile.

        Args:
            session: what to work with; `out_of_time` says when to stop.
            mask: what is kept.
            weights: by layer, where they are not the reference weights any more.

        Returns:
            The mask, the one given or another that meets the budget; and the weights of every layer that was
            changed, [out, in], of which those that the mask prunes are not looked at.
        """
