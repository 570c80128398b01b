"""Type hints of parts: which of them are parts, which registry kind they belong to, and how to say them."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

from secateur.core.registry import lookup, names

# Where an abstract part is called otherwise than the kind it is registered under.
_ALIASES = {"source": "data"}
_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "truth values"),
    str: ("text", "texts"),
}


def kind_of(hint: Any) -> str | None:
    """Say under which registry kind the parts are that a hint allows.

    Args:
        hint: a type hint.

    Returns:
        The kind, such as ``"solver"``; None where the hint is no part.
    """
    if not isinstance(hint, type):
        return None
    for base in hint.__mro__:
        word = base.__dict__.get("part_name")
        kind = _ALIASES.get(word, word) if isinstance(word, str) else None
        # A registered part carries its own name; the kind is what its abstract base is called.
        if kind and names(kind) and all(issubclass(lookup(kind, n), base) for n in names(kind)):
            return kind
    return None


def a_kind(kind: str) -> str:
    """Name a kind with its article.

    Args:
        kind: the registry kind.

    Returns:
        Such as ``"a solver"`` or ``"an allocation"``.
    """
    word = "data source" if kind == "data" else kind
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def allowed_names(kind: str, hint: Any = object) -> list[str]:
    """List the parts of a kind that a hint allows.

    Args:
        kind: the registry kind.
        hint: the class that is asked for.

    Returns:
        Their names.
    """
    return [name for name in names(kind) if issubclass(lookup(kind, name), hint)]


def is_plain_dataclass(hint: Any) -> TypeGuard[type]:
    """Say whether a hint is a dataclass that is no part, such as settings that parts share.

    Args:
        hint: a type hint.

    Returns:
        True where it is.
    """
    return isinstance(hint, type) and is_dataclass(hint) and kind_of(hint) is None


@lru_cache(maxsize=256)
def field_hints(cls: type) -> Mapping[str, Any]:
    """Give the hint of each field that the constructor of a dataclass takes.

    Args:
        cls: the dataclass.

    Returns:
        Hints by field name, in order.
    """
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls) if f.init}


def required_fields(cls: type) -> list[str]:
    """List the fields of a dataclass that have no default.

    Args:
        cls: the dataclass.

    Returns:
        Their names.
    """
    return [f.name for f in fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING]


def default_of(cls: type, name: str) -> Any:
    """Give the default of a field.

    Args:
        cls: the dataclass.
        name: the field.

    Returns:
        The default; None where there is none.
    """
    field = next(f for f in fields(cls) if f.name == name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def without_none(hint: Any) -> tuple[Any, bool]:
    """Take None out of a union.

    Args:
        hint: a type hint.

    Returns:
        The hint without None, and whether there was one.
    """
    if get_origin(hint) in (Union, types.UnionType):
        rest = tuple(arg for arg in get_args(hint) if arg is not type(None))
        if len(rest) < len(get_args(hint)):
            return (rest[0] if len(rest) == 1 else Union[rest]), True  # noqa: UP007 - made at run time
    return hint, False


def element(hint: Any) -> Any:
    """Give the hint of the elements of a tuple or list of any length.

    Args:
        hint: a type hint.

    Returns:
        The elements' hint; None where the hint is no such thing.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return args[0]
    return args[0] if origin in (list, Sequence) and args else None


def in_words(hint: Any) -> str:
    """Say what a hint asks for.

    Args:
        hint: a type hint.

    Returns:
        Words that fit behind "what is needed is".
    """
    hint, optional = without_none(hint)
    if optional:
        return f'{in_words(hint)} or "none"'
    if hint in _WORDS:
        return _WORDS[hint][0]
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f"'{value}'" for value in get_args(hint))
    kind = kind_of(hint)
    if kind:
        return f"{a_kind(kind)} ({', '.join(allowed_names(kind, hint))})"
    inner = element(hint)
    if inner is not None:
        return f"a list of {_WORDS[inner][1] if inner in _WORDS else f'{kind_of(inner) or inner}s'}"
    if get_origin(hint) is tuple:
        return f"a list of {len(get_args(hint))} values"
    if get_origin(hint) in (dict, Mapping) or is_plain_dataclass(hint):
        return "a table"
    return str(getattr(hint, "__name__", hint))
