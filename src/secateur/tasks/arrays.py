"""Data from files of arrays: .npz, .pt, .safetensors, or a folder of .npy files."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from secateur.core.errors import SecateurError, nearest
from secateur.core.registry import register
from secateur.tasks.augmentation import Augmentation
from secateur.tasks.division import Division
from secateur.tasks.preparation import read_processor
from secateur.tasks.samples import Labelled, Normalisation, Samples
from secateur.tasks.source import Source

_PAIRS = (("x", "y"), ("inputs", "labels"), ("images", "labels"), ("data", "targets"), ("data", "labels"))
_CALIBRATION = ("", "train", "calibration")
_EVALUATION = ("test", "evaluation", "eval", "val", "validation")


@register("data", "arrays")
@dataclass(frozen=True)
class Arrays(Source):
    """Inputs and labels by name: keys of an .npz, .pt or .safetensors file, or .npy files of a folder.

    Where names are not given, the usual ones are looked for: x and y, inputs and labels, images
    and labels, data and targets, with train or test before or after (train_x, x_test).

    Attributes:
        path: the file, or a folder whose .npy files are the arrays (x.npy is called x).
        inputs: name of the calibration inputs.
        labels: name of the calibration labels.
        evaluation_inputs: name of the evaluation inputs; the same name as `inputs` means: evaluate
            on the calibration data.
        evaluation_labels: name of the evaluation labels.
        channels_last: inputs are [.., height, width, channels]; move the channels to the front.
        normalisation: of each batch.
        division: of the samples.
        processor: a folder with a model's preprocessor_config.json (or timm's config.json), or a name on the
            hub: inputs are pictures as bytes, in grey or colour, and are prepared as that says.
        augmentation: how pictures are varied where gradients of mini-batches are taken; by default not.
    """

    path: str
    inputs: str | None = None
    labels: str | None = None
    evaluation_inputs: str | None = None
    evaluation_labels: str | None = None
    channels_last: bool = False
    normalisation: Normalisation = field(default_factory=Normalisation)
    division: Division = field(default_factory=Division)
    processor: str | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    def load(self) -> Samples:
        """Read the arrays.

        Returns:
            The samples.

        Raises:
            SecateurError: a file or a name is missing, or the data are not fit to use.
        """
        arrays = read_arrays(self.path)
        names = self._names(arrays, self.inputs, self.labels, _CALIBRATION)
        if names is None:
            raise SecateurError(
                f"'{self.path}' holds {', '.join(sorted(arrays)) or 'no arrays'}: say which are the inputs "
                "and "
                'the labels, such as inputs = "x", labels = "y".'
            )
        evaluation = self._names(arrays, self.evaluation_inputs, self.evaluation_labels, _EVALUATION)
        pile = self._labelled(arrays, names)
        if evaluation == names:
            evaluation_pile = pile
        else:
            evaluation_pile = None if evaluation is None else self._labelled(arrays, evaluation)
        samples = self.division.divide(pile, evaluation_pile, self.normalisation, f"'{self.path}'")
        if self.processor is not None:
            samples = self._processed(samples, self.processor)
        return replace(samples, augmentation=self.augmentation)

    def _processed(self, samples: Samples, processor: str) -> Samples:
        """Prepare pictures as a model's image processor says."""
        if self.normalisation != Normalisation():
            raise SecateurError(
                f"the processor of '{processor}' says how pictures are prepared: leave out normalisation, or "
                "processor."
            )
        prepared = read_processor(processor)

        def decode(part: Labelled) -> Labelled:
            pictures = as_pictures(part.inputs, samples.origin)
            pixels = prepared.decoder.stack(pictures, len(pictures), lambda at: f"{at} in {samples.origin}")
            return Labelled(pixels, part.labels)

        return replace(
            samples, calibration=decode(samples.calibration), evaluation=decode(samples.evaluation),
            normalisation=prepared.normalisation, processor=prepared.processor,
        )  # fmt: skip

    def _names(
        self, arrays: Mapping[str, Any], inputs: str | None, labels: str | None, prefixes: tuple[str, ...]
    ) -> tuple[str, str] | None:
        """Give the names of a pair of arrays: those asked for, or the first usual ones there are."""
        if (inputs is None) != (labels is None):
            raise SecateurError(f"for '{self.path}' give the names of both inputs and labels, or of neither.")
        if inputs is not None and labels is not None:
            for name in (inputs, labels):
                if name not in arrays:
                    raise SecateurError(
                        f"there is no array '{name}' in '{self.path}': {nearest(name, arrays)}."
                    )
            return inputs, labels
        for prefix in prefixes:
            for x, y in _PAIRS:
                spellings = ((f"{prefix}_{x}", f"{prefix}_{y}"), (f"{x}_{prefix}", f"{y}_{prefix}"))
                for pair in spellings if prefix else ((x, y),):
                    if all(name in arrays for name in pair):
                        return pair
        return None

    def _labelled(self, arrays: Mapping[str, Any], names: tuple[str, str]) -> Labelled:
        """Check a pair of arrays."""
        origin = f"'{self.path}' ({names[0]} and {names[1]})"
        found = Labelled.checked(arrays[names[0]], arrays[names[1]], origin)
        if not self.channels_last:
            return found
        if found.inputs.dim() < 3:
            raise SecateurError(
                f"channels_last needs images, but the inputs in {origin} have the shape "
                f"{list(found.inputs.shape)}: leave it out."
            )
        return Labelled(found.inputs.movedim(-1, 1).contiguous(), found.labels)


def as_pictures(inputs: Tensor, origin: str) -> np.ndarray:
    """Give arrays of pictures the form that PIL reads.

    Args:
        inputs: bytes [s, h, w], [s, c, h, w] or [s, h, w, c] with 1 or 3 channels.
        origin: where they come from, for the message.

    Returns:
        Grey pictures [s, h, w], or coloured ones [s, h, w, 3].

    Raises:
        SecateurError: they are no pictures.
    """
    shape = inputs.shape
    if inputs.dtype != torch.uint8 or inputs.dim() not in (3, 4):
        raise SecateurError(
            f"the inputs in {origin} are {str(inputs.dtype).removeprefix('torch.')} of shape {list(shape)}, "
            "but a processor prepares pictures as bytes (uint8) of two or three dimensions each: leave it "
            "out (--processor none)."
        )
    if inputs.dim() == 4 and shape[1] in (1, 3):
        inputs = inputs.movedim(1, -1)
    elif inputs.dim() == 4 and shape[-1] not in (1, 3):
        raise SecateurError(
            f"the inputs in {origin} have the shape {list(shape)}: pictures have 1 or 3 channels, in "
            "dimension 1 or in the last one."
        )
    return (inputs[..., 0] if inputs.shape[-1] == 1 and inputs.dim() == 4 else inputs).contiguous().numpy()


def read_arrays(path: str | Path) -> dict[str, Any]:
    """Read all arrays of a file, or of a folder of .npy files.

    Args:
        path: a .npz, .pt, .pth or .safetensors file, or a folder. A .pt file holds a dict, or the
            tuple (x, y) or (train_x, train_y, test_x, test_y).

    Returns:
        The arrays by name.

    Raises:
        SecateurError: the file is missing, damaged or of another kind.
    """
    path = Path(path)
    readers = {".npz": _npz, ".pt": _pt, ".pth": _pt, ".safetensors": load_file}
    if not path.exists():
        raise SecateurError(f"there is no file '{path}': give the path of the data.")
    try:
        if path.is_dir():
            return {file.stem: np.load(file, allow_pickle=False) for file in sorted(path.glob("*.npy"))}
        if path.suffix in readers:
            return readers[path.suffix](path)
    except pickle.UnpicklingError as error:
        raise SecateurError(
            f"'{path}' holds more than tensors, and opening it could run any code: save a dict or a tuple of "
            "tensors with torch.save."
        ) from error
    except SecateurError:
        raise
    except Exception as error:  # damaged files make torch and numpy raise errors of any kind
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise SecateurError(f"cannot read '{path}' ({reason}): is it damaged, or of another kind?") from error
    hint = (
        "give the folder that holds it and its labels"
        if path.suffix == ".npy"
        else "its name is of no known kind"
    )
    raise SecateurError(
        f"cannot read '{path}': {hint}; .npz, .pt, .safetensors and folders of .npy can be read."
    )


def _npz(path: Path) -> dict[str, Any]:
    """Read an archive of arrays; objects are refused, since reading them could run any code."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _pt(path: Path) -> dict[str, Any]:
    """Read tensors saved by torch.save."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping):
        return {str(name): value for name, value in content.items()}
    names = {2: ("x", "y"), 4: ("train_x", "train_y", "test_x", "test_y")}
    if isinstance(content, list | tuple) and len(content) in names:
        return dict(zip(names[len(content)], content, strict=True))
    raise SecateurError(
        f"'{path}' holds neither a dict nor a tuple of 2 or 4 tensors: save it as "
        'torch.save({"x": inputs, "y": labels}, path).'
    )
