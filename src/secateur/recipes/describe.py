"""From parts back to tables, with every default written out."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from secateur.recipes.builder import NONE


def describe(part: Any) -> dict[str, Any]:
    """Write a part, or any dataclass of settings, as the table it can be built from again.

    Args:
        part: an object of a frozen dataclass.

    Returns:
        Its name, where it is registered, and all its fields. None is written "none", since TOML
        has no null.
    """
    cls = type(part)
    # Registration sets the name on the class itself; an abstract base has the kind there.
    table: dict[str, Any] = {"name": cls.part_name} if "part_name" in cls.__dict__ else {}
    for field in fields(part):
        if field.init:
            table[field.name] = _written(getattr(part, field.name))
    return table


def _written(value: Any) -> Any:
    """Turn a field's value into one that TOML knows."""
    if value is None:
        return NONE
    if is_dataclass(value) and not isinstance(value, type):
        return describe(value)
    if isinstance(value, Mapping):
        return {str(key): _written(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_written(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
