"""The abstract part that gives data."""

from abc import ABC, abstractmethod
from typing import ClassVar

from secateur.core.task import Task


class Data(ABC):
    """Where data come from: a frozen dataclass whose fields say which files, and how to read them."""

    part_name: ClassVar[str] = "source"

    @abstractmethod
    def task(self) -> Task:
        """Read the data, and say what is to be done with them.

        Returns:
            The task.
        """
