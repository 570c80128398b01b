"""Names for parts, so that a recipe can ask for one by name."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

from secateur.core.errors import SecateurError, nearest

T = TypeVar("T", bound=type)
_PARTS: dict[str, dict[str, type]] = {}
ENTRY_POINT = "secateur.parts"


def register(kind: str, name: str) -> Callable[[T], T]:
    """Enter a class under a kind and a name.

    Args:
        kind: the family, such as ``"solver"`` or ``"score"``.
        name: the name a recipe uses, such as ``"swaps"``.

    Returns:
        A decorator that returns the class unchanged, with `part_name` set on it.
    """

    def enter(cls: T) -> T:
        _PARTS.setdefault(kind, {})[name] = cls
        cls.part_name = name  # type: ignore[attr-defined]
        return cls

    return enter


def load_plugins() -> None:
    """Import every module that packages announce under the entry point `secateur.parts`.

    Raises:
        SecateurError: one of them cannot be imported.
    """
    for entry in entry_points(group=ENTRY_POINT):
        try:
            entry.load()
        except Exception as error:  # whatever somebody else's module does
            raise SecateurError(
                f"the plug-in '{entry.name}' ({entry.value}) cannot be imported: {error}; mend or remove it."
            ) from error


def names(kind: str) -> list[str]:
    """List the registered names of a kind, sorted.

    Args:
        kind: the family.

    Returns:
        The names.
    """
    return sorted(_PARTS.get(kind, {}))


def lookup(kind: str, name: str) -> type:
    """Find the class registered under a kind and a name.

    Where it is not there yet, the modules that announce parts are imported first: so the core
    can use a part, a solver say, without knowing where it lives.

    Args:
        kind: the family.
        name: the name.

    Returns:
        The class.

    Raises:
        SecateurError: no such name; the message holds the nearest one.
    """
    if name not in _PARTS.get(kind, {}):
        load_plugins()
    parts = _PARTS.get(kind, {})
    if name not in parts:
        raise SecateurError(f"there is no {kind} called '{name}': {nearest(name, parts)}.")
    return parts[name]
