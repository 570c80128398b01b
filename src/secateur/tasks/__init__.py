"""Tasks: what a batch is, the loss of each sample, and where the data come from."""

from secateur.tasks.arrays import Arrays
from secateur.tasks.augmentation import Augmentation
from secateur.tasks.causal_lm import CausalLM
from secateur.tasks.classification import Classification
from secateur.tasks.digits import Digits
from secateur.tasks.division import Division
from secateur.tasks.huggingface import HuggingFace
from secateur.tasks.idx import Idx
from secateur.tasks.images import Images
from secateur.tasks.samples import Labelled, Normalisation, Samples
from secateur.tasks.source import Source
from secateur.tasks.text import Text

__all__ = [
    "Arrays",
    "Augmentation",
    "CausalLM",
    "Classification",
    "Digits",
    "Division",
    "HuggingFace",
    "Idx",
    "Images",
    "Labelled",
    "Normalisation",
    "Samples",
    "Source",
    "Text",
]
