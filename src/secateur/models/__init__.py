"""Models: where networks come from."""

from secateur.models.causal_lm import PretrainedLM, load_model, load_tokenizer
from secateur.models.cnn import CNN
from secateur.models.function import Function, find_function
from secateur.models.image_classifier import ImageClassifier
from secateur.models.mlp import MLP, GarmentClassifier
from secateur.models.part import Model
from secateur.models.resnet import CifarResNet
from secateur.models.timm import Timm
from secateur.models.training import Trained, fit
from secateur.models.vit import ViT
from secateur.models.weights import load_weights, read_state_dict

__all__ = [
    "CNN",
    "MLP",
    "CifarResNet",
    "Function",
    "GarmentClassifier",
    "ImageClassifier",
    "Model",
    "PretrainedLM",
    "Timm",
    "Trained",
    "ViT",
    "find_function",
    "fit",
    "load_model",
    "load_tokenizer",
    "load_weights",
    "read_state_dict",
]
