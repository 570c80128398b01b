"""Pictures of all kinds -> bytes [channels, height, width]."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from math import floor
from pathlib import PurePath
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from secateur.core.errors import SecateurError

Resampling: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]
# PIL raises SyntaxError for a broken PNG.
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_MODES = {1: "L", 3: "RGB"}
_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


class Decoder(ABC):
    """Turns pictures into bytes, all of one size."""

    @property
    @abstractmethod
    def remedy(self) -> str:
        """What to do where pictures come out in several sizes."""

    @abstractmethod
    def decode(self, picture: Any) -> UInt8[np.ndarray, "c h w"]:
        """Turn one picture into bytes.

        Args:
            picture: a PIL image, an array of bytes [h, w] or [h, w, c], or a file that PIL can open.

        Returns:
            Its pixels.
        """

    def stack(
        self, pictures: Iterable[Any], count: int, name: Callable[[int], str]
    ) -> UInt8[Tensor, "s c h w"]:
        """Decode pictures into one tensor, one after the other.

        Args:
            pictures: PIL images, arrays or files.
            count: how many; at least one.
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
            except _UNREADABLE as error:
                raise SecateurError(
                    f"cannot read the picture {name(at)} ({error}): remove it or replace it."
                ) from error
            if stacked is None:
                stacked = torch.empty((count, *pixels.shape), dtype=torch.uint8)
            if pixels.shape != stacked.shape[1:]:
                raise SecateurError(
                    f"the picture {name(at)} has {pixels.shape[1]} x {pixels.shape[2]} pixels but {name(0)} "
                    f"has {stacked.shape[2]} x {stacked.shape[3]}: {self.remedy}."
                )
            stacked.numpy()[at] = pixels
        if stacked is None:
            raise SecateurError("there are no pictures to read.")
        return stacked


@dataclass(frozen=True)
class Pictures(Decoder):
    """Pictures prepared by size and crop.

    Attributes:
        size: height and width of the result; None: they all have one size already.
        channels: 1 (grey) or 3 (red, green, blue).
        crop: the part of each side, in (0, 1], that is cut out of the middle after the picture has been
            resized in its own proportions to cover size / crop; None: the whole picture is squeezed into
            `size`.
        resampling: the filter that resizes.
    """

    size: tuple[int, int] | None
    channels: int
    crop: float | None = None
    resampling: Resampling = "bilinear"

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
        if self.crop is not None and not 0 < self.crop <= 1:
            raise SecateurError(f"crop is {self.crop}, but it is a part of each side, such as crop = 0.875.")
        if self.crop is not None and self.size is None:
            raise SecateurError("crop needs a size to cut out, such as size = [224, 224].")

    @property
    def remedy(self) -> str:
        """What to do where pictures come out in several sizes."""
        return "give a size, such as size = [32, 32], to resize all"

    def decode(self, picture: Any) -> UInt8[np.ndarray, "c h w"]:
        """Turn one picture into bytes.

        Args:
            picture: a PIL image, an array of bytes [h, w] or [h, w, c], or a file that PIL can open.

        Returns:
            Its pixels.
        """
        converted = opened(picture, self.channels)
        if self.size is not None:
            converted = self._fit(converted, *self.size)
        pixels = np.asarray(converted, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def _fit(self, picture: Image.Image, height: int, width: int) -> Image.Image:
        """Resize to the size; with `crop`, cut it out of the middle."""
        resampling = Image.Resampling[self.resampling.upper()]
        if self.crop is None:
            return picture.resize((width, height), resampling)
        tall, wide = _cover(
            picture.height, picture.width, floor(height / self.crop), floor(width / self.crop)
        )
        top, left = round((tall - height) / 2), round((wide - width) / 2)
        return picture.resize((wide, tall), resampling).crop((left, top, left + width, top + height))


def _cover(height: int, width: int, least_height: int, least_width: int) -> tuple[int, int]:
    """Scale a picture in its proportions until it just covers a rectangle."""
    if height * least_width < width * least_height:
        return least_height, max(least_width, least_height * width // height)
    return max(least_height, least_width * height // width), least_width


def opened(picture: Any, channels: int) -> Image.Image:
    """Open a picture, in grey or in colour.

    Args:
        picture: a PIL image, an array of bytes [h, w] or [h, w, c], the bytes of a file (as they are, or as
            ``"bytes"`` of a dict), or a file that PIL can open.
        channels: 1 (grey) or 3 (colour).

    Returns:
        The picture, turned as its EXIF orientation says; of 16 bits a pixel the upper 8.

    Raises:
        ValueError: there is none, or its pixels are no bytes.
    """
    if isinstance(picture, dict):  # how data sets hold pictures that nobody declared to be some
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, bytes):
        picture = BytesIO(picture)
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if picture is None:
        raise ValueError("there is none")
    found = picture if isinstance(picture, Image.Image) else Image.open(picture)
    found = ImageOps.exif_transpose(found)
    if found.mode.startswith("I;16"):  # which PIL would cut off at 255
        found = Image.fromarray((np.asarray(found) // 257).astype(np.uint8))
    if found.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers: convert it to 8 bits a channel")
    return found.convert(_MODES[channels])


def is_picture(path: PurePath) -> bool:
    """Say whether a file's name is that of a picture.

    Args:
        path: the file.

    Returns:
        True for the usual endings, hidden files aside.
    """
    return path.suffix.lower() in _ENDINGS and not path.name.startswith(".")
