"""Fields set from outside a recipe: dotted paths, or bare names that occur once."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_origin

from secateur.core.errors import SecateurError, nearest
from secateur.core.registry import lookup, names
from secateur.recipes.builder import join, read_typed
from secateur.recipes.describe import describe
from secateur.recipes.files import sentence
from secateur.recipes.hints import field_hints, is_plain_dataclass, kind_of, required_fields, without_none

_RUN = "run"


@dataclass(frozen=True)
class Place:
    """A field that can be set.

    Attributes:
        path: dotted, from the top of the recipe.
        kind: of the part that stands there and is switched by its name; None: no part does.
        free: whether it is a table of any entries, each of which can be set.
    """

    path: str
    kind: str | None
    free: bool = False


def apply(
    table: Mapping[str, Any], overrides: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Any]
) -> dict[str, Any]:
    """Set fields of a recipe.

    Parts are switched first, the outermost before those inside, so that fields of the new
    parts can be set in one go; a part switched by name starts from its defaults.

    Args:
        table: the recipe.
        overrides: values by dotted path, or by a name (or end of a path) that occurs once.
        build: makes a recipe of a table, which says what fields there are.

    Returns:
        The recipe with every default written out and the fields set.

    Raises:
        SecateurError: a field is unknown or ambiguous.
    """
    recipe = build(table)
    result = describe(recipe)
    pending = {key.replace("-", "_").removesuffix(".name"): (key, value) for key, value in overrides.items()}
    while True:
        places = list(list_places(recipe))
        switches = [(place, key) for key in pending if (place := _find_part(key, places))]
        if not switches:
            break
        place, key = min(switches, key=lambda switch: switch[0].path.count("."))
        value = pending.pop(key)[1]
        _set(result, place.path, _switched(_get(result, place.path), value, place, pending))
        recipe = build(result)
        result = describe(recipe)
    for key, (typed, value) in pending.items():
        path = _find(key, places)
        if path is None:
            path, value = _find_entry(key, places), read_typed(value)
        if path is None:
            raise SecateurError(_unknown(key, typed, places))
        _set(result, path, value)
    return result


def list_places(owner: Any, path: str = "") -> Iterator[Place]:
    """List the fields that can be set in a recipe or a part, those of parts inside included.

    Args:
        owner: a dataclass object.
        path: where it stands.

    Yields:
        The places, outer ones first.
    """
    for name, hint in field_hints(type(owner)).items():
        value, here = getattr(owner, name), join(path, name)
        inner, _ = without_none(hint)
        yield Place(here, kind_of(inner), get_origin(inner) in (dict, Mapping))
        for at, item in enumerate(value) if isinstance(value, tuple | list) else [(None, value)]:
            if kind_of(type(item)) or is_plain_dataclass(type(item)):
                yield from list_places(item, here if at is None else f"{here}.{at}")


def _matches(key: str, places: list[Place]) -> list[Place]:
    """Find what a key may stand for: the path itself, a field of [run], or else any path's end."""
    exact = [p for p in places if p.path == key] or [p for p in places if p.path == f"{_RUN}.{key}"]
    found = exact or [p for p in places if p.path.endswith(f".{key}")]
    # The solver inside a solver does not make `solver` ambiguous: the outer one is meant.
    return found[:1] if all(p.path.startswith(f"{found[0].path}.") for p in found[1:]) else found


def _find(key: str, places: list[Place]) -> str | None:
    """Find the one path that a key stands for; None where there is none."""
    matches = _matches(key, places)
    if len(matches) > 1:
        paths = ", ".join(f"'{p.path}'" for p in matches)
        raise SecateurError(f"recipe field '{key}' could be any of {paths}: write out which.")
    return matches[0].path if matches else None


def _find_entry(key: str, places: list[Place]) -> str | None:
    """Find the entry of a free table that a key stands for; None where there is none."""
    parts = key.split(".")
    for at in range(len(parts) - 1, 0, -1):
        matches = _matches(".".join(parts[:at]), places)
        if len(matches) == 1 and matches[0].free:
            return ".".join((matches[0].path, *parts[at:]))
    return None


def _find_part(key: str, places: list[Place]) -> Place | None:
    """Find the one part that a key stands for."""
    matches = _matches(key, places)
    return matches[0] if len(matches) == 1 and matches[0].kind else None


def _unknown(key: str, typed: str, places: list[Place]) -> str:
    """Say which field comes nearest by its last name: beside the one typed, below it, or anywhere."""
    head, _, leaf = key.rpartition(".")
    beside = [p.path for p in places if p.path.rpartition(".")[0] == head]
    below = [p.path for p in places if p.path.startswith(f"{head}.")]
    for paths in (beside, below, [p.path for p in places]):
        ends = {path.rpartition(".")[2]: path for path in reversed(paths)}
        hint = nearest(leaf, ends)
        if hint.startswith("did you mean"):
            near = ends[hint.split("'")[1]]
            return f"recipe field '{typed}' is unknown: did you mean '{near}'?"
    hint = "`secateur recipes show NAME --resolved` lists the fields there are"
    return sentence(f"recipe field '{typed}' is unknown", hint)


def _switched(before: Any, value: Any, place: Place, pending: dict[str, tuple[str, Any]]) -> Any:
    """Give the table of a part chosen by name, with those fields set that it cannot be built without."""
    if not isinstance(value, str) or place.kind is None or str(value) not in names(place.kind):
        return value
    if isinstance(before, Mapping) and before.get("name") == str(value):
        return before  # the same again keeps its settings
    table: dict[str, Any] = {"name": str(value)}
    for field in required_fields(lookup(place.kind, str(value))):
        key = next((k for k in (f"{place.path}.{field}", field) if k in pending), None)
        if key is not None:
            table[field] = pending.pop(key)[1]
    return table


def _get(table: Any, path: str) -> Any:
    """Look up a dotted path; None where there is nothing."""
    for key in path.split("."):
        table = table[int(key)] if isinstance(table, list) else table.get(key, {})
    return table


def _set(table: Any, path: str, value: Any) -> None:
    """Set a dotted path."""
    *above, last = path.split(".")
    for key in above:
        table = table[int(key)] if isinstance(table, list) else table.setdefault(key, {})
    if isinstance(table, list):
        table[int(last)] = value
    else:
        table[last] = value
