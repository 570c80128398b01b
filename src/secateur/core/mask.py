"""The mask: which weights of each layer are kept."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.core.errors import SecateurError

_FORMAT = "secateur-mask-1"


@dataclass(frozen=True, eq=False)
class Mask(Mapping[str, Tensor]):
    """One boolean matrix [out, in] for each layer; True = kept.

    Attributes:
        layers: the matrices by layer name.
        metadata: strings stored beside them in a file, such as the seed.
    """

    layers: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Bool[Tensor, "out in"]:
        """Give the matrix of a layer."""
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the layers' names."""
        return iter(self.layers)

    def __len__(self) -> int:
        """Count the layers."""
        return len(self.layers)

    @property
    def densities(self) -> dict[str, float]:
        """The fraction kept in each layer."""
        return {name: int(m.sum()) / m.numel() for name, m in self.layers.items()}

    @property
    def density(self) -> float:
        """The fraction of the prunable weights that is kept."""
        kept = sum(int(m.sum()) for m in self.layers.values())
        return kept / sum(m.numel() for m in self.layers.values())

    def same_as(self, other: "Mask") -> bool:
        """Say whether another mask has the same layers and the same entries.

        Args:
            other: the other mask.

        Returns:
            True where they agree in every entry.
        """
        return self.layers.keys() == other.layers.keys() and all(
            torch.equal(m.cpu(), other.layers[name].cpu()) for name, m in self.layers.items()
        )

    def flips(self, other: "Mask") -> int:
        """Count the weights in which two masks differ.

        Args:
            other: a mask of the same layers.

        Returns:
            The number of differing entries.
        """
        return sum(self.layer_flips(other).values())

    def layer_flips(self, other: "Mask") -> dict[str, int]:
        """Count the flips of each layer that has any.

        Args:
            other: a mask of the same layers.

        Returns:
            The numbers of differing entries by layer.
        """
        counts = {name: int((m != other.layers[name]).sum()) for name, m in self.layers.items()}
        return {name: count for name, count in counts.items() if count}

    def clone(self) -> "Mask":
        """Copy the mask.

        Returns:
            A mask that shares no memory with this one.
        """
        return Mask({n: m.clone() for n, m in self.layers.items()}, dict(self.metadata))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file of boolean matrices.

        Args:
            path: where to.
        """
        tensors = {name: m.contiguous().cpu() for name, m in self.layers.items()}
        save_file(tensors, str(path), {"format": _FORMAT, "secateur": json.dumps(self.metadata)})

    @classmethod
    def load(cls, path: str | Path) -> "Mask":
        """Read a file written by `save`.

        Args:
            path: where from.

        Returns:
            The mask, on the CPU.

        Raises:
            SecateurError: the file is missing, damaged, or holds something else.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                layers = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise SecateurError(f"cannot read the mask file {path}: {error}.") from error
        if header.get("format") != _FORMAT or any(m.dtype != torch.bool for m in layers.values()):
            raise SecateurError(f"{path} is a safetensors file but not a Secateur mask.")
        return cls(layers, json.loads(header.get("secateur", "{}")))
