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

    Raises:
        SecateurError: there is no such recipe, or it cannot be read.
    """
    word = str(recipe)
    if word in builtin_names():
        return word, (_BUILTIN / f"{word}.toml").read_text(encoding="utf-8")
    path = Path(word).expanduser()
    if path.is_dir():
        if not (path / RECIPE_FILE).is_file():
            raise SecateurError(
                f"{path} is a folder without a {RECIPE_FILE}: give a recipe, or the folder of a run."
            )
        path = path / RECIPE_FILE
    if not path.is_file():
        if path.suffix == ".toml" or len(path.parts) > 1:
            raise SecateurError(
                f"there is no recipe file {path}: give the path of one, or a built-in one "
                f"({', '.join(builtin_names())})."
            )
        raise SecateurError(sentence(f"there is no recipe '{word}'", nearest(word, builtin_names())))
    try:
        return path.stem, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SecateurError(f"cannot read the recipe {path}: {error}.") from error


def parse(text: str, origin: str) -> dict[str, Any]:
    """Parse TOML.

    Args:
        text: the file's text.
        origin: what the file is called, for the message.

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
            f"the recipe {origin} is not TOML{place}: {said[:1].lower()}{said[1:]}."
        ) from error


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


def sentence(beginning: str, hint: str) -> str:
    """Join what is wrong and what would be right.

    Args:
        beginning: what is wrong, without a full stop.
        hint: what `nearest` gave.

    Returns:
        One sentence with its stop.
    """
    return f"{beginning}: {hint}" + ("" if hint.endswith("?") else ".")
