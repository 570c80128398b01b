"""Models: where networks come from."""

from secateur.models.causal_lm import PretrainedLM, load_model, load_tokenizer
from secateur.models.function import Function, find_function
from secateur.models.mlp import MLP, GarmentClassifier
from secateur.models.part import Model
from secateur.models.training import Trained, fit
from secateur.models.weights import load_weights, read_state_dict

__all__ = [
    "MLP",
    "Function",
    "GarmentClassifier",
    "Model",
    "PretrainedLM",
    "Trained",
    "find_function",
    "fit",
    "load_model",
    "load_tokenizer",
    "load_weights",
    "read_state_dict",
]
