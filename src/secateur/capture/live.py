"""How much memory tensors take while something is computed, at the most."""

import weakref
from typing import Any

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
        before = {_key(each) for each in (*args, *(kwargs or {}).values()) if isinstance(each, Tensor)}
        result = function(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, Tensor) and _key(made) not in before:
                self._add(made)
        return result

    def _add(self, made: Tensor) -> None:
        """Count a storage until it is freed."""
        storage, key = made.untyped_storage(), _key(made)
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        """Stop counting a storage."""
        self._alive.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    """Tell storages apart: by their handle, as an empty one has no address."""
    return tensor.untyped_storage()._cdata
