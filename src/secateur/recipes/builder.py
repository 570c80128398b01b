"""From tables to parts: one builder for all of them, guided by their type hints."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, get_origin

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from secateur.core.errors import SecateurError, nearest
from secateur.core.registry import lookup
from secateur.recipes.files import sentence
from secateur.recipes.hints import (
    a_kind,
    allowed_names,
    default_of,
    element,
    field_hints,
    in_words,
    is_plain_dataclass,
    kind_of,
    required_fields,
    without_none,
)

NONE = "none"  # TOML has no null
_BARE = re.compile(r"[+-]?\.\d+")  # people type .5, which is no number in TOML


class Text(str):
    """A value as it was typed on a command line: what it is depends on the field it is for."""

    __slots__ = ()


def build_part(kind: str, value: Any, path: str, wanted: type = object) -> Any:
    """Build a part from a recipe.

    Args:
        kind: the registry kind.
        value: a name, or a table with a name and fields.
        path: where in the recipe it is, for messages.
        wanted: the class that it must be of.

    Returns:
        The part.

    Raises:
        SecateurError: the sentence says which field is wrong, and what would be right.
    """
    value = read_typed(value)
    table = {"name": str(value)} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise SecateurError(
            f"recipe field '{path}' is {_shown(value)}: give the name of {a_kind(kind)}, "
            "or a table with its name."
        )
    choices = allowed_names(kind, wanted)
    # Where one class alone will do, its name may be left out.
    name = table.get("name", getattr(wanted, "part_name", None) if len(choices) == 1 else None)
    if name is None:
        raise SecateurError(
            f"recipe table '{path}' lacks 'name': name {a_kind(kind)}, one of {', '.join(choices)}."
        )
    if not isinstance(name, str) or str(name) not in choices:
        raise SecateurError(
            sentence(
                f"recipe field '{path}' asks for {a_kind(kind)} called '{name}'", nearest(str(name), choices)
            )
        )
    return build_dataclass(lookup(kind, str(name)), {k: v for k, v in table.items() if k != "name"}, path)


def build_dataclass(cls: type, table: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """Build a frozen dataclass from a table.

    Args:
        cls: the class.
        table: values by field name.
        path: where in the recipe the table is, for messages.
        default: an object of the class, whose values fields have that are left out; None = the
            defaults of the class.

    Returns:
        The object.

    Raises:
        SecateurError: a field is unknown, missing, of the wrong type, or refused by the class.
    """
    hints = field_hints(cls)
    for key in table:
        if key not in hints:
            known = nearest(key, hints) if hints else "it has no fields to set"
            raise SecateurError(sentence(f"recipe field '{join(path, key)}' is unknown", known))
    for key in required_fields(cls):
        if key not in table and default is None:
            raise SecateurError(
                f"recipe field '{join(path, key)}' is missing: it must be {in_words(hints[key])}."
            )
    values = {
        key: build_value(hints[key], value, join(path, key), default_of(cls, key))
        for key, value in table.items()
    }
    try:
        return cls(**values) if default is None else replace(default, **values)
    except SecateurError as error:
        raise SecateurError(f"recipe table '{path}': {error}" if path else str(error)) from error


def build_value(hint: Any, value: Any, path: str, default: Any = None) -> Any:
    """Build what a field holds.

    Args:
        hint: the field's type hint.
        value: what the recipe says.
        path: where, for messages.
        default: what the field holds where the recipe says nothing.

    Returns:
        The value.

    Raises:
        SecateurError: it is not of that type.
    """
    hint, optional = without_none(hint)
    if optional and (value is None or (isinstance(value, str) and value.lower() == NONE)):
        return None
    kind = kind_of(hint)
    if kind:
        return build_part(kind, value, path, hint)
    if is_plain_dataclass(hint):
        table = read_typed(value)
        if not isinstance(table, Mapping):
            raise SecateurError(_mistyped(hint, value, path))
        return build_dataclass(hint, table, path, default if isinstance(default, hint) else None)
    inner = element(hint)
    if inner is not None:
        items = _items(value)
        if not isinstance(items, list | tuple):
            raise SecateurError(_mistyped(hint, value, path))
        built = [build_value(inner, item, f"{path}.{at}") for at, item in enumerate(items)]
        return tuple(built) if get_origin(hint) is tuple else built
    return _plain(hint, value, path)


def join(path: str, key: str) -> str:
    """Extend a dotted path.

    Args:
        path: of a table; empty for the recipe itself.
        key: in that table.

    Returns:
        The path of the field.
    """
    return f"{path}.{key}" if path else key


def _plain(hint: Any, value: Any, path: str) -> Any:
    """Check a value that holds no parts."""
    if isinstance(value, Text):
        value = str(value) if hint is str else read_typed(value)
    if get_origin(hint) is tuple:
        items = _items(value)
        value = tuple(items) if isinstance(items, list | tuple) else items
    try:
        return _validator(hint)(str(value) if isinstance(value, Text) else value, strict=True)
    except ValidationError as error:
        raise SecateurError(_mistyped(hint, value, path)) from error
    except PydanticSchemaGenerationError as error:
        raise SecateurError(f"recipe field '{path}' cannot be set in a recipe, only from Python.") from error


@lru_cache(maxsize=256)
def _validator(hint: Any) -> Callable[..., Any]:
    """Make the check of a type, once."""
    return TypeAdapter(hint).validate_python


def read_typed(value: Any) -> Any:
    """Read what was typed as TOML where it is TOML, else as a word.

    Args:
        value: a `Text`, or anything else, which is given back as it is.

    Returns:
        The value.
    """
    if not isinstance(value, Text):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return float(value) if _BARE.fullmatch(value) else value


def _items(value: Any) -> Any:
    """Read a typed list: [1, 2] or 1,2 or a single value."""
    if not isinstance(value, Text):
        return value
    typed = read_typed(value)
    if isinstance(typed, list):
        return typed
    return [Text(item.strip()) for item in value.split(",") if item.strip()]


def _mistyped(hint: Any, value: Any, path: str) -> str:
    """Say what was given and what is needed."""
    return f"recipe field '{path}' is {_shown(value)}, but it must be {in_words(hint)}."


def _shown(value: Any) -> str:
    """Write a value as TOML would, cut short."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, str):
        text = f"'{value}'"
    elif isinstance(value, Mapping):
        text = "a table"
    else:
        text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
