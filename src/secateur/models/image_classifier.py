"""Image classifiers of Hugging Face."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from secateur.core.registry import register
from secateur.core.task import Task
from secateur.models.part import Model
from secateur.pretrained import load_classifier


@register("model", "image-classifier")
@dataclass(frozen=True)
class ImageClassifier(Model):
    """An image classifier, as AutoModelForImageClassification of transformers loads it.

    Attributes:
        path: a folder with config.json and weights, or a name on the hub.
        dtype: of the weights; ``"auto"``: as they are stored.
    """

    path: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def build(self, task: Task | None = None) -> nn.Module:
        """Load the model.

        Args:
            task: not used.

        Returns:
            The model, on the CPU.
        """
        return load_classifier(self.path, self.dtype)
