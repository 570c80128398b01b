"""Causal language models of Hugging Face."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from secateur.core.registry import register
from secateur.core.task import Task
from secateur.models.part import Model
from secateur.pretrained import load_pretrained, load_tokenizer

__all__ = ["PretrainedLM", "load_model", "load_tokenizer"]

load_model = load_pretrained


@register("model", "causal-lm")
@dataclass(frozen=True)
class PretrainedLM(Model):
    """A causal language model, as AutoModelForCausalLM of transformers loads it.

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
        return load_pretrained(self.path, self.dtype)
