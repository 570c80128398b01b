"""Pictures in folders, one folder a class."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.core.errors import SecateurError, nearest
from secateur.core.registry import register
from secateur.tasks.division import Division
from secateur.tasks.pictures import Pictures, is_picture
from secateur.tasks.samples import Labelled, Normalisation, Samples
from secateur.tasks.source import Source

_EVALUATION = ("test", "val", "validation", "eval", "evaluation")


@register("data", "images")
@dataclass(frozen=True)
class Images(Source):
    """A folder with one subfolder a class, or with train/ and test/ (or val/) that each are such a folder.

    Classes are numbered in the alphabetical order of their folders' names. Pictures may lie in
    deeper folders.

    Attributes:
        folder: the folder.
        size: height and width to resize to; None: all pictures have one size already.
        channels: 1 (grey) or 3 (colour).
        normalisation: by default to [0, 1].
        division: of the samples; only the pictures it takes are read.
    """

    folder: str
    size: tuple[int, int] | None = None
    channels: int = 3
    normalisation: Normalisation = field(default_factory=Normalisation)
    division: Division = field(default_factory=Division)

    def load(self) -> Samples:
        """Read the pictures.

        Returns:
            The samples.

        Raises:
            SecateurError: a folder is missing or empty, or a picture cannot be read.
        """
        root = Path(self.folder)
        if not root.is_dir():
            raise SecateurError(
                f"there is no folder '{self.folder}': give the folder that holds one folder a class."
            )
        train = root / "train"
        classes = _classes(train if train.is_dir() else root)
        files = _files(train if train.is_dir() else root, classes)
        separate = next(
            (root / name for name in _EVALUATION if train.is_dir() and (root / name).is_dir()), None
        )
        evaluation_files = files if separate is None else _files(separate, classes)
        plan = self.division.plan(
            len(files), None if separate is None else len(evaluation_files), f"'{self.folder}'"
        )
        return Samples(
            self._read(files, plan.calibration),
            self._read(evaluation_files, plan.evaluation),
            tuple(classes),
            self.normalisation,
            plan.disjoint,
            f"'{self.folder}'",
        )

    def _read(self, files: list[tuple[Path, int]], index: Int[Tensor, " n"]) -> Labelled:
        """Decode the chosen pictures."""
        chosen = [files[at] for at in index.tolist()]
        pixels = Pictures(self.size, self.channels).stack(
            [p for p, _ in chosen], lambda at: f"'{chosen[at][0]}'"
        )
        return Labelled(pixels, torch.tensor([label for _, label in chosen]))


def _classes(folder: Path) -> list[str]:
    """List the names of the classes."""
    classes = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not classes:
        raise SecateurError(
            f"'{folder}' has no folders in it: put the pictures of each class into a folder with the "
            "class's name."
        )
    return classes


def _files(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """List the pictures with their labels, in a fixed order."""
    files: list[tuple[Path, int]] = []
    for entry in sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    ):
        if entry.name not in classes:
            raise SecateurError(
                f"'{entry}' is a class that is not among those to calibrate with: "
                f"{nearest(entry.name, classes)}."
            )
        pictures = sorted(path for path in entry.rglob("*") if path.is_file() and is_picture(path))
        files += [(path, classes.index(entry.name)) for path in pictures]
    if not files:
        raise SecateurError(
            f"there are no pictures in the folders of '{folder}': .png, .jpg and the like are read."
        )
    return files
