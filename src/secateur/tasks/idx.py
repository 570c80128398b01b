"""MNIST, Fashion-MNIST and their kin, from the IDX files they are published in."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.registry import register
from secateur.tasks.division import Division
from secateur.tasks.samples import Labelled, Normalisation, Samples
from secateur.tasks.source import Source

_BYTES = 0x08  # the type code of unsigned bytes, the only one these data sets use


@register("data", "idx")
@dataclass(frozen=True)
class Idx(Source):
    """A folder of four IDX files, packed with gzip or not: train-* calibrates, t10k-* evaluates.

    Attributes:
        folder: where train-images-idx3-ubyte.gz and the other three are.
        flat: give [pixels] rows; else images [1, height, width].
        normalisation: by default to [-1, 1].
        division: how many samples to take.
    """

    folder: str
    flat: bool = False
    normalisation: Normalisation = field(default_factory=lambda: Normalisation(255.0, (0.5,), (0.5,)))
    division: Division = field(default_factory=Division)

    def load(self) -> Samples:
        """Read the four files.

        Returns:
            The samples.
        """
        return self.division.divide(
            self._part("train"), self._part("t10k"), self.normalisation, f"'{self.folder}'"
        )

    def _part(self, prefix: str) -> Labelled:
        """Read images and labels of one part."""
        path = self._find(prefix, "images", 3)
        images = read_idx(path)
        if images.dim() != 3:
            raise SecateurError(f"'{path}' holds {images.dim()} dimensions where images have 3.")
        inputs = images.flatten(1) if self.flat else images[:, None]
        return Labelled.checked(inputs, read_idx(self._find(prefix, "labels", 1)), f"'{path}'")

    def _find(self, prefix: str, what: str, dimensions: int) -> Path:
        """Find a file by the names it goes by."""
        stems = [f"{prefix}-{what}{joint}idx{dimensions}-ubyte" for joint in ("-", ".")]
        for name in [stem + packed for stem in stems for packed in (".gz", "")]:
            if (Path(self.folder) / name).is_file():
                return Path(self.folder) / name
        raise SecateurError(
            f"there is no {stems[0]}.gz in '{self.folder}': folder must hold the four IDX files "
            "train-images, train-labels, t10k-images and t10k-labels, packed or not."
        )


def read_idx(path: str | Path) -> UInt8[Tensor, "..."]:
    """Read an IDX file of bytes: 0, 0, the type, the number of dimensions, each of them, the data.

    Args:
        path: the file; unpacked first where its name ends in .gz.

    Returns:
        The data, in the shape the file says.

    Raises:
        SecateurError: the file is missing, damaged or of another kind.
    """
    try:
        content = Path(path).read_bytes()
        raw = gzip.decompress(content) if Path(path).suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise SecateurError(f"cannot read '{path}' ({error}): fetch the file anew.") from error
    if len(raw) < 4 or raw[:3] != bytes((0, 0, _BYTES)) or len(raw) < 4 + 4 * raw[3]:
        raise SecateurError(
            f"'{path}' is not an IDX file of bytes: give the files as they are published, such as "
            "train-images-idx3-ubyte.gz."
        )
    start = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise SecateurError(
            f"'{path}' should hold {math.prod(shape)} bytes of data but holds {len(raw) - start}: fetch the "
            "file anew."
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).copy()).reshape(shape)
