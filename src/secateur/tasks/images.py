"""Pictures in folders, one folder a class; the folders may be in a zip file."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.core.errors import SecateurError, nearest
from secateur.core.registry import register
from secateur.tasks.augmentation import Augmentation
from secateur.tasks.division import Division
from secateur.tasks.pictures import Decoder, Resampling
from secateur.tasks.preparation import prepare
from secateur.tasks.samples import Labelled, Normalisation, Samples
from secateur.tasks.shelves import Shelf, open_shelf
from secateur.tasks.source import Source

_TRAIN = ("train", "training")
_EVALUATION = ("test", "testing", "val", "valid", "validation", "eval", "evaluation")


@register("data", "images")
@dataclass(frozen=True)
class Images(Source):
    """A folder with one subfolder a class, or with train/ and test/ (or val/) that each are such a folder.

    Classes are numbered in the alphabetical order of their folders' names. Pictures may lie in
    deeper folders. The folder may also be a .zip file, which is read without being unpacked; a single
    folder that holds all the others in it is looked through.

    Attributes:
        folder: the folder, or the .zip file.
        size: height and width to resize to; None: all pictures have one size already.
        channels: 1 (grey) or 3 (colour).
        normalisation: by default to [0, 1].
        division: of the samples; only the pictures it takes are read.
        crop: cut this part of each side, in (0, 1], out of the middle, after resizing the picture in its own
            proportions to cover size / crop; None: the whole picture is squeezed into `size`.
        resampling: how pictures are resized.
        processor: a folder with a model's preprocessor_config.json (or timm's config.json), or a name on the
            hub: pictures are prepared as that says, instead of by size, crop and normalisation.
        augmentation: how pictures are varied where gradients of mini-batches are taken; by default not.
    """

    folder: str
    size: tuple[int, int] | None = None
    channels: int = 3
    normalisation: Normalisation = field(default_factory=Normalisation)
    division: Division = field(default_factory=Division)
    crop: float | None = None
    resampling: Resampling = "bilinear"
    processor: str | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    def load(self) -> Samples:
        """Read the pictures.

        Returns:
            The samples.
        """
        with open_shelf(self.folder) as shelf:
            return self._load(shelf)

    def _load(self, shelf: Shelf) -> Samples:
        """Read the pictures of a shelf."""
        prepared = prepare(self)
        pile, separate = _parts(shelf)
        classes = _classes(shelf, pile)
        files = _files(shelf, pile, classes)
        evaluation_files = files if separate is None else _files(shelf, separate, classes)
        origin = f"'{self.folder}'"
        plan = self.division.plan(len(files), None if separate is None else len(evaluation_files), origin)
        return Samples(
            _read(shelf, prepared.decoder, files, plan.calibration),
            _read(shelf, prepared.decoder, evaluation_files, plan.evaluation),
            tuple(classes),
            prepared.normalisation,
            plan.disjoint,
            origin,
            processor=prepared.processor,
            augmentation=self.augmentation,
        )


def _read(shelf: Shelf, decoder: Decoder, files: list[tuple[str, int]], index: Int[Tensor, " n"]) -> Labelled:
    """Decode the chosen pictures."""
    chosen = [files[at] for at in index.tolist()]
    pixels = decoder.stack(
        (shelf.open(place) for place, _ in chosen), len(chosen), lambda at: shelf.name(chosen[at][0])
    )
    return Labelled(pixels, torch.tensor([label for _, label in chosen]))


def _parts(shelf: Shelf) -> tuple[str, str | None]:
    """Find the places of the pictures to calibrate with, and of those to evaluate with if elsewhere."""
    top = shelf.top()
    places = {name.lower(): f"{top}/{name}" if top else name for name in shelf.folders(top)}
    train = next((places[name] for name in _TRAIN if name in places), None)
    test = next((places[name] for name in _EVALUATION if name in places), None)
    if train is None and places and places.keys() <= set(_EVALUATION):
        raise SecateurError(
            f"{shelf.name(top)} holds pictures to evaluate with alone ({', '.join(sorted(places))}): add "
            "those to calibrate with, in a folder train, or give the folder with one folder a class."
        )
    return (top, None) if train is None else (train, test)


def _classes(shelf: Shelf, place: str) -> list[str]:
    """List the names of the classes."""
    classes = shelf.folders(place)
    if not classes:
        raise SecateurError(
            f"{shelf.name(place)} has no folders in it: put the pictures of each class into a folder with "
            "the class's name."
        )
    if len(classes) == 1:
        raise SecateurError(
            f"{shelf.name(place)} has a single folder, '{classes[0]}', but a classifier tells classes apart: "
            "give the folder that holds one folder a class."
        )
    return classes


def _files(shelf: Shelf, place: str, classes: list[str]) -> list[tuple[str, int]]:
    """List the pictures with their labels, in a fixed order."""
    files: list[tuple[str, int]] = []
    numbers = {name: number for number, name in enumerate(classes)}
    for name in shelf.folders(place):
        inside = f"{place}/{name}" if place else name
        if name not in numbers:
            raise SecateurError(
                f"{shelf.name(inside)} is a class that is not among those to calibrate with: "
                f"{nearest(name, classes)}."
            )
        files += [(picture, numbers[name]) for picture in shelf.pictures(inside)]
    if not files:
        raise SecateurError(
            f"there are no pictures in the folders of {shelf.name(place)}: .png, .jpg and the like are read."
        )
    return files
