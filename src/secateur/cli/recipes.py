"""`secateur recipes`: list, show, copy."""

import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table

from secateur.core.errors import SecateurError
from secateur.recipes.files import builtin_names, read_table, read_text


def list_recipes() -> int:
    """Print the built-in recipes.

    Returns:
        The status.
    """
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in builtin_names():
        table.add_row(f"[bold]{name}", str(read_table(name).get("about", "")))
    console = Console()
    console.print(table)
    console.print("\nsecateur prune NAME, or secateur recipes copy NAME to make it your own", style="dim")
    return 0


def show_recipe(name: str, *, resolved: bool) -> int:
    """Print a recipe.

    Args:
        name: which.
        resolved: with every default written out.

    Returns:
        The status.
    """
    if resolved:
        from secateur.recipes import load

        text = load(name, expand_folders=False).dumps()
    else:
        text = read_text(name)[1]
    Console(soft_wrap=True).print(text.rstrip(), markup=False, highlight=False)
    return 0


def copy_recipe(name: str, dest: str | None) -> int:
    """Copy a recipe into a file.

    Args:
        name: which.
        dest: the file; None: named after the recipe, here.

    Returns:
        The status.

    Raises:
        SecateurError: there is a file already, or it cannot be written.
    """
    stem, text = read_text(name)
    path = Path(dest or f"{stem}.toml").expanduser()
    if path.is_dir():
        path = path / f"{stem}.toml"
    if path.exists():
        raise SecateurError(
            f"{path} is there already: give another name, as in `secateur recipes copy {name} my.toml`."
        )
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SecateurError(f"cannot write {path}: {error.strerror}.") from error
    Console(soft_wrap=True).print(
        f"wrote {path}; run it with: secateur prune {shlex.quote(str(path))}", highlight=False
    )
    return 0
