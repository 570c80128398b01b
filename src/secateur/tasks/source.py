"""The abstract part that gives samples with labels."""

from abc import abstractmethod

from secateur.core.data import Data
from secateur.tasks.classification import Classification
from secateur.tasks.samples import Samples


class Source(Data):
    """Where samples of one class each come from."""

    @abstractmethod
    def load(self) -> Samples:
        """Read the data into memory.

        Returns:
            The samples, checked.
        """

    def task(self) -> Classification:
        """Read the data, to name the class of each sample.

        Returns:
            The task.
        """
        return Classification(self.load())
