"""The handwritten digits that come with scikit-learn."""

from dataclasses import dataclass

import numpy as np
import torch

from secateur.core.registry import register
from secateur.tasks.samples import Labelled, Normalisation, Samples
from secateur.tasks.source import Source

_EVALUATION = 500
# Coprime to the 1,797 images, so that stepping by it visits each once, in an order without
# regard to the writers: a fixed shuffle that depends on no random generator's version.
_STRIDE = 1009


@register("data", "digits")
@dataclass(frozen=True)
class Digits(Source):
    """1,797 images of 8 x 8 pixels: 1,297 calibrate, 500 evaluate, always the same ones.

    Pixels 0 to 16 are mapped to [-1, 1].

    Attributes:
        flat: give [64] rows; else images [1, 8, 8].
    """

    flat: bool = True

    def load(self) -> Samples:
        """Read the images from scikit-learn; nothing is downloaded.

        Returns:
            The samples.
        """
        from sklearn.datasets import load_digits  # slow to import, and seldom needed

        images, labels = load_digits(return_X_y=True)
        order = np.arange(len(labels)) * _STRIDE % len(labels)
        inputs = torch.from_numpy(images[order].astype(np.uint8))
        pile = Labelled.checked(
            inputs if self.flat else inputs.reshape(-1, 1, 8, 8), labels[order], "the digits"
        )
        return Samples(
            calibration=pile.select(torch.arange(_EVALUATION, len(pile))),
            evaluation=pile.select(torch.arange(_EVALUATION)),
            class_names=tuple("0123456789"),
            normalisation=Normalisation(16.0, (0.5,), (0.5,)),
            origin="scikit-learn's digits",
        )
