"""How much memory tensors take while something is computed, at the most."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, from when they are made to when they are freed.

    What operations take for themselves while they run is not seen, nor what was there before.

    Attributes:
        now: how many there are.
        peak: the most there were at the same time.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it made."""
        given = {_key(storage) for storage in storages((*args, *(kwargs or {}).values()))}
        result = function(*args, **(kwargs or {}))
        for storage in storages(result if isinstance(result, tuple | list) else (result,)):
            if _key(storage) not in given | self._alive:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed."""
        key, size = _key(storage), storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        """Stop counting a storage."""
        self._alive.discard(key)
        self.now -= size


def storages(values: Iterable[Any]) -> list[torch.UntypedStorage]:
    """Give the memory that tensors lie in.

    Args:
        values: anything.

    Returns:
        The storages of those values that are tensors; a sparse one has none of its own.
    """
    return [x.untyped_storage() for x in values if isinstance(x, Tensor) and x.layout == torch.strided]


def _key(storage: torch.UntypedStorage) -> int:
    """Tell storages apart: by their handle, as an empty one has no address."""
    return storage._cdata
