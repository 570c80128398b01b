"""Recipe files: where they are, reading them, writing them, and what stands for a folder in them."""

import os
import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w

from secateur.core.errors import SecateurError, nearest

ASSETS_VARIABLE = "SECATEUR_ASSETS"
RECIPE_FILE = "recipe.toml"
_PATHS = ("path", "folder", "weights", "tokenizer", "processor", "evaluation_path")
_BUILTIN = files("secateur.recipes") / "builtin"
_PLACE = re.compile(r"\s*\(at (line \d+, column \d+|end of document)\)")


def builtin_names() -> list[str]:
    """List the recipes that come with Secateur.

    Returns:
        Their names, sorted.
    """
    return sorted(entry.name[:-5] for entry in _BUILTIN.iterdir() if entry.name.endswith(".toml"))


def read_text(recipe: str | Path) -> tuple[str, str]:
    """Find a recipe and read it.

    Args:
        recipe: a built-in name, the path of a TOML file, or a run folder.

    Returns:
        What to call it, and its text.
    """
    return _read(recipe)[:2]


def read_table(recipe: str | Path) -> dict[str, Any]:
    """Find a recipe, read it and parse it.

    Args:
        recipe: a built-in name, the path of a TOML file, or a run folder.

    Returns:
        The table.
    """
    _, text, origin = _read(recipe)
    return parse(text, origin)


def _read(recipe: str | Path) -> tuple[str, str, str]:
    """Give what to call a recipe, its text, and where it is."""
    word = str(recipe)
    if word in builtin_names():
        return word, (_BUILTIN / f"{word}.toml").read_text(encoding="utf-8"), word
    path = Path(word).expanduser()
    name = path.stem
    if path.is_dir():
        if not (path / RECIPE_FILE).is_file():
            raise SecateurError(
                f"{path} is a folder without a {RECIPE_FILE}: give a recipe, or the folder of a run."
            )
        name = path.resolve().name or path.stem
        path = path / RECIPE_FILE
    if not path.is_file():
        if path.suffix == ".toml" or len(path.parts) > 1:
            raise SecateurError(
                f"there is no recipe file {path}: give the path of one, or a built-in one "
                f"({', '.join(builtin_names())})."
            )
        raise SecateurError(sentence(f"there is no recipe '{word}'", nearest(word, builtin_names())))
    try:
        return name, path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SecateurError(f"cannot read the recipe {path} ({error}): {_remedy(path)}.") from error


def parse(text: str, origin: str) -> dict[str, Any]:
    """Parse TOML.

    Args:
        text: the file's text.
        origin: where the text is from, for the message.

    Returns:
        The table.

    Raises:
        SecateurError: it is not TOML; the sentence says in which line.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _PLACE.search(str(error))
        place = f", {found[1]}" if found else ""
        said = _PLACE.sub("", str(error))
        raise SecateurError(
            f"the recipe {origin} is not TOML{place} ({said[:1].lower()}{said[1:]}): {_remedy(Path(origin))}."
        ) from error


def _remedy(path: Path) -> str:
    """Say what to do about a file that cannot be read as a recipe."""
    if path.name == RECIPE_FILE and (path.parent / "events.jsonl").is_file():
        return "it is the recipe of a run, so take it from a copy, or begin another run"
    return "mend it there; `secateur recipes show digits` prints one that is right"


def dump(table: Mapping[str, Any]) -> str:
    """Write a table as TOML.

    Args:
        table: values that TOML knows; no None.

    Returns:
        The text.
    """
    return tomli_w.dumps(table)


def expand(table: Any, assets: str | Path | None = None, path: str = "") -> Any:
    """Put folders in the place of ``{assets}`` and of a leading ``~`` in all strings of a table.

    Args:
        table: a recipe, or what is in it.
        assets: the folder; None: the one that SECATEUR_ASSETS names.
        path: where in the recipe this is, for the message.

    Returns:
        A copy with the folders written out.

    Raises:
        SecateurError: a string needs the assets and nobody said where they are.
    """
    if isinstance(table, Mapping):
        return {key: expand(value, assets, f"{path}.{key}".lstrip(".")) for key, value in table.items()}
    if isinstance(table, list):
        return [expand(value, assets, path) for value in table]
    if not isinstance(table, str):
        return table
    if "{assets}" in table:
        folder = assets or os.environ.get(ASSETS_VARIABLE)
        if not folder:
            raise SecateurError(
                f"recipe field '{path}' is '{table}', but nobody said where the assets are: "
                f"give --assets DIR or set {ASSETS_VARIABLE}."
            )
        # Absolute, so that the folder of a run says where its data were.
        table = type(table)(table.replace("{assets}", str(Path(folder).expanduser().resolve())))
    return type(table)(os.path.expanduser(table)) if table.startswith("~") else table


def absolute(table: Any) -> Any:
    """Make the local paths in a table absolute, so that a run can be looked at from any folder.

    A path is what a field called path, folder or weights holds, or the file part of a target
    ``file.py:function``. What is not there is left as it is: it may be a name on a hub.

    Args:
        table: a recipe, or what is in it.

    Returns:
        A copy.
    """
    if isinstance(table, list):
        return [absolute(item) for item in table]
    if not isinstance(table, Mapping):
        return table
    result: dict[str, Any] = {}
    for key, value in table.items():
        if not isinstance(value, str):
            # What a user's function is called with is the user's own affair.
            result[key] = value if key == "arguments" else absolute(value)
            continue
        place, colon, function = value.rpartition(":") if key == "target" else (str(value), "", "")
        is_path = key in _PATHS or (key == "target" and place.endswith(".py"))
        found = is_path and place and os.path.exists(place)
        result[key] = type(value)(f"{os.path.abspath(place)}{colon}{function}") if found else value
    return result


def sentence(beginning: str, hint: str) -> str:
    """Join what is wrong and what would be right.

    Args:
        beginning: what is wrong, without a full stop.
        hint: what `nearest` gave.

    Returns:
        One sentence with its stop.
    """
    return f"{beginning}: {hint}" + ("" if hint.endswith("?") else ".")
