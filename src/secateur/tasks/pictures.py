"""Pictures of all kinds -> bytes [channels, height, width]."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from secateur.core.errors import SecateurError

_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Pictures:
    """How pictures are decoded.

    Attributes:
        size: height and width to resize to; None: they all have one size already.
        channels: 1 (grey) or 3 (red, green, blue).
    """

    size: tuple[int, int] | None
    channels: int

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SecateurError: one is out of range.
        """
        if self.channels not in _MODES:
            raise SecateurError(f"channels is {self.channels}, but pictures have 1 (grey) or 3 (colour).")
        if self.size is not None and min(self.size) < 1:
            raise SecateurError(
                f"size is {self.size}, but a height and a width are needed, such as size = [32, 32]."
            )

    def decode(self, picture: Any) -> UInt8[np.ndarray, "c h w"]:
        """Turn one picture into bytes.

        Args:
            picture: a PIL image, or a file that PIL can open.

        Returns:
            Its pixels.
        """
        opened = picture if isinstance(picture, Image.Image) else Image.open(picture)
        converted = opened.convert(_MODES[self.channels])
        if self.size is not None:
            height, width = self.size
            converted = converted.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(converted, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def stack(self, pictures: Sequence[Any], name: Callable[[int], str]) -> UInt8[Tensor, "s c h w"]:
        """Decode pictures into one tensor.

        Args:
            pictures: PIL images or files; at least one.
            name: position -> how a message names that picture.

        Returns:
            The pixels.

        Raises:
            SecateurError: a picture cannot be read, or differs in size from the first.
        """
        stacked: Tensor | None = None
        for at, picture in enumerate(pictures):
            try:
                pixels = self.decode(picture)
            except (OSError, ValueError, SyntaxError) as error:  # PIL raises SyntaxError for a broken PNG
                raise SecateurError(
                    f"cannot read the picture {name(at)} ({error}): remove it or replace it."
                ) from error
            if stacked is None:
                stacked = torch.empty((len(pictures), *pixels.shape), dtype=torch.uint8)
            if pixels.shape != stacked.shape[1:]:
                raise SecateurError(
                    f"the picture {name(at)} has {pixels.shape[1]} x {pixels.shape[2]} pixels but {name(0)} "
                    f"has {stacked.shape[2]} x {stacked.shape[3]}: give a size, such as size = [32, 32], to "
                    "resize all."
                )
            stacked[at] = torch.from_numpy(pixels.copy())
        if stacked is None:
            raise SecateurError("there are no pictures to read.")
        return stacked


def is_picture(path: Path) -> bool:
    """Say whether a file's name is that of a picture.

    Args:
        path: the file.

    Returns:
        True for the usual endings, hidden files aside.
    """
    endings = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
    return path.suffix.lower() in endings and not path.name.startswith(".")
