"""Models of timm, where that is installed."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

from secateur.core.errors import SecateurError, in_short
from secateur.core.registry import register
from secateur.core.task import Task
from secateur.models.part import Model, seeded
from secateur.models.weights import load_weights


@register("model", "timm")
@dataclass(frozen=True)
class Timm(Model):
    """A model that timm makes (R. Wightman, PyTorch Image Models, 2019).

    Attributes:
        model: its name in timm, such as ``"deit_small_patch16_224"``.
        weights: a file of trained weights (.pt, .pth or .safetensors); None: none.
        classes: how many outputs; None: as many as timm gives it.
        pretrained: download the weights that timm knows; never done unless asked for.
        arguments: further ones for timm.create_model, by name.
        seed: of random weights.

    Raises:
        SecateurError: both weights and pretrained are asked for.
    """

    model: str
    weights: str | None = None
    classes: int | None = None
    pretrained: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        """See that weights come from one place."""
        if self.weights is not None and self.pretrained:
            raise SecateurError("weights come from a file or, with pretrained, from timm: leave one out.")

    def build(self, task: Task | None = None) -> nn.Module:
        """Make the model.

        Args:
            task: not used.

        Returns:
            The model, on the CPU, in evaluation mode.

        Raises:
            SecateurError: timm is not installed, does not know the model, or cannot make it.
        """
        timm = import_timm()
        outputs = {} if self.classes is None else {"num_classes": self.classes}
        try:
            with seeded(self.seed, "initial weights"):
                model = timm.create_model(self.model, pretrained=self.pretrained, **outputs, **self.arguments)
        except Exception as error:  # timm, and the hub below it, raise errors of many kinds
            raise SecateurError(
                f"timm cannot make '{self.model}' ({in_short(error)}): timm.list_models() lists the names "
                "there are."
            ) from error
        if self.weights is not None:
            load_weights(model, self.weights)
        return model.eval()


def import_timm() -> Any:
    """Import timm.

    Returns:
        The package.

    Raises:
        SecateurError: it cannot be imported.
    """
    try:
        return import_module("timm")
    except Exception as error:  # a torchvision that does not fit torch raises errors of many kinds
        raise SecateurError(
            f"this model needs timm, which cannot be imported ({in_short(error)}): "
            "pip install timm torchvision."
        ) from error


def timm_config(model: str) -> dict[str, Any]:
    """Say how timm prepares the pictures of a model.

    Args:
        model: its name in timm.

    Returns:
        Its pretrained_cfg: input_size, mean, std, crop_pct, interpolation and others.

    Raises:
        SecateurError: timm is not installed, or does not know the model.
    """
    try:
        return dict(import_timm().get_pretrained_cfg(model).to_dict())
    except SecateurError:
        raise
    except Exception as error:
        raise SecateurError(
            f"timm does not know '{model}': timm.list_models() lists the names there are."
        ) from error
