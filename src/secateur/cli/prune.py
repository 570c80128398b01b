"""`secateur prune`: a recipe and words from the command line -> a run."""

import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape

from secateur.cli.progress import Progress
from secateur.cli.tables import summary
from secateur.core.errors import SecateurError
from secateur.recipes.builder import Text
from secateur.recipes.files import read_text
from secateur.recipes.quick import quick_recipe, title

# What a run may be resumed with: how far, where and in what memory, and what is written.
_MAY_DIFFER = ("run.budget", "run.memory", "run.device", "run.save_model")


def run_prune(
    words: Sequence[str],
    fields: Mapping[str, str],
    *,
    out: str | None,
    assets: str | None,
    resume: str | None,
    quiet: bool,
) -> int:
    """Prune as a recipe says.

    Args:
        words: the recipe, and fields of it as ``--path value``.
        fields: more fields, by path.
        out: the run folder; None: a new one below runs/.
        assets: the folder that {assets} stands for.
        resume: the folder of a run to go on with.
        quiet: show nothing.

    Returns:
        The status.

    Raises:
        SecateurError: something typed cannot be used.
        KeyboardInterrupt: the user would not wait for the end of a step.
    """
    named, typed = split_words(words)
    overrides = {name: Text(value) for name, value in {**typed, **fields}.items()}
    if len(named) > 1:
        raise SecateurError(f"one recipe at a time: {' and '.join(named)} were named.")
    if resume is not None:
        _check_resume(resume, named, overrides, out)
    source, title = _source(resume, named, overrides)
    folder = Path(resume).expanduser() if resume else Path(out).expanduser() if out else next_folder(title)
    if not resume:
        _check_new(folder)
    from secateur.recipes import load, prepare, run_recipe  # seconds, which a mistake above need not wait for

    recipe = load(source, overrides, assets=assets)
    console = Console(quiet=quiet)
    progress = Progress(console, folder.name if resume else title)
    things = prepare(recipe)
    try:
        with _interruptible(console) as stop, nullcontext() if quiet else progress:
            run = run_recipe(
                recipe, out=folder, resume=bool(resume), listeners=[progress], stop=stop, ingredients=things
            )
    except KeyboardInterrupt as error:
        if (folder / "state.safetensors").is_file():
            raise KeyboardInterrupt(f"go on with it by `{_resuming(folder)}`") from error
        raise
    console.print()
    console.print(summary(run.report))
    _closing(console, folder)
    return 0


def _source(
    resume: str | None, named: Sequence[str], overrides: dict[str, Text]
) -> tuple[str | dict[str, Any], str]:
    """Give the recipe, and what to call it; a model and data, taken from the fields, make one."""
    if resume is not None or named:
        recipe = resume or named[0]
        return recipe, read_text(recipe)[0]
    model, data = overrides.pop("model", None), overrides.pop("data", None)
    if model is None and data is None:
        raise SecateurError(
            "name a recipe, such as `secateur prune digits` (`secateur recipes ls` lists them), or a "
            "model and data: --model FOLDER --data FILE."
        )
    if model is None or data is None:
        raise SecateurError(
            "--model needs --data FILE: a .txt, .jsonl or .parquet file of text, or a Hugging Face data set; "
            "for other models pictures (a folder with one folder a class, or a .zip of it), or an .npz file."
            if data is None
            else "--data needs --model FOLDER: that of a Hugging Face causal language model or image "
            "classifier, or timm:NAME, or the function that builds a network, file.py:function."
        )
    return quick_recipe(str(model), str(data), frozenset(overrides)), title(str(model))


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Divide words into plain ones and fields: ``--path value`` or ``--path=value``.

    Args:
        words: what was typed.

    Returns:
        The plain words, and values by path.

    Raises:
        SecateurError: a field has no value.
    """
    plain: list[str] = []
    fields: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            plain.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        following = value if equals else next(rest, None)
        if following is None or (not equals and following.startswith("--")):
            raise SecateurError(f"--{name} lacks a value: write --{name} VALUE.")
        fields[name] = following
    return plain, fields


def next_folder(name: str) -> Path:
    """Give the first folder runs/NAME-N that does not exist.

    Args:
        name: of the recipe.

    Returns:
        The folder.
    """
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


def _resuming(folder: Path) -> str:
    """Write the command that goes on with a run."""
    return f"secateur prune --resume {shlex.quote(str(folder))}"


def _check_new(folder: Path) -> None:
    """Refuse a folder that something is in."""
    if not folder.exists() or (folder.is_dir() and not any(folder.glob("[!.]*"))):
        return
    if (folder / "events.jsonl").is_file():
        raise SecateurError(
            f"{folder} holds a run already: go on with it by `{_resuming(folder)}`, or give another --out."
        )
    raise SecateurError(f"{folder} is there already and not empty: give another --out.")


def _check_resume(resume: str, named: Sequence[str], overrides: Mapping[str, str], out: str | None) -> None:
    """See that a run is resumed as it was begun."""
    others = [name for name in overrides if name not in _MAY_DIFFER and f"run.{name}" not in _MAY_DIFFER]
    if named or others or out:
        given = [*named, *(f"--{name.removeprefix('run.')}" for name in others), *(["--out"] if out else [])]
        raise SecateurError(
            f"a run goes on with the recipe it was begun with: leave out {', '.join(given)} "
            "(--budget, --memory, --device and --save-model may differ)."
        )
    folder = Path(resume).expanduser()
    if not folder.is_dir():
        raise SecateurError(f"there is no run folder {resume} to resume.")
    if not (folder / "recipe.toml").is_file():
        raise SecateurError(f"{resume} holds no recipe.toml: it was not begun by `secateur prune`.")


@contextmanager
def _interruptible(console: Console) -> Iterator["_Stop"]:
    """Let the first ctrl-c end the run after the current step, and the second one at once."""
    stop = _Stop(console)
    try:
        before = signal.signal(signal.SIGINT, stop.ask)
    except ValueError:  # not in the main thread: nobody types there
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class _Stop:
    """Says whether the user asked to stop."""

    def __init__(self, console: Console) -> None:
        self._console, self._asked = console, False

    def __call__(self) -> bool:
        return self._asked

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Note the first time, give up the second."""
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._console.print("[yellow]stopping after this step; ctrl-c again stops at once")


def _closing(console: Console, folder: Path) -> None:
    """Say where everything is and what can be done with it."""
    name, quoted = escape(str(folder)), escape(shlex.quote(str(folder)))
    console.print(
        f"\n[bold]{name}[/] holds the mask, report.html and the log.", highlight=False, soft_wrap=True
    )
    for words in (f"secateur evaluate {quoted}", f"secateur compare {quoted} OTHER"):
        console.print(f"  {words}", style="dim", highlight=False, soft_wrap=True)
