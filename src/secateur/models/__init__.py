"""Models: where networks come from."""

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
    "Trained",
    "find_function",
    "fit",
    "load_weights",
    "read_state_dict",
]
