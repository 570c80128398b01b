"""The run folder: what a run leaves on the disk, whole at any moment."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.events import Event
from secateur.core.files import replacing
from secateur.core.mask import Mask
from secateur.pruners import State
from secateur.runs.checkpoint import read_checkpoint, write_checkpoint

EVENTS, STATE, MASK, WEIGHTS, STATISTICS, REPORT, RECIPE = (
    "events.jsonl", "state.safetensors", "mask.safetensors", "weights.safetensors", "statistics.safetensors",
    "report.json", "recipe.toml",
)  # fmt: skip


class RunFolder:
    """Reads and writes the files of one run.

    recipe.toml (resolved), events.jsonl (one line an event), state.safetensors (what a resume
    needs), mask.safetensors, weights.safetensors where kept weights changed, statistics.safetensors where
    those of BatchNorm did, report.json, and the pruned model where asked for. Each but the log is replaced
    as a whole, so that a run killed at any moment leaves a folder that can be resumed.
    """

    def __init__(self, path: Path) -> None:
        """Point at a folder, which need not exist.

        Args:
            path: where it is.
        """
        self.path = path

    @classmethod
    def create(cls, path: str | Path, recipe: str | None) -> "RunFolder":
        """Begin a new run folder.

        Args:
            path: where; it must be new or empty.
            recipe: the resolved recipe as TOML, None where there is none.

        Returns:
            The folder.

        Raises:
            SecateurError: something is there already, or it cannot be written.
        """
        folder = cls(Path(path))
        if folder.path.exists() and not folder.is_free():
            hint = "resume it, or " if (folder.path / EVENTS).exists() else ""
            raise SecateurError(f"'{path}' exists and is not empty: {hint}choose another run folder.")
        if recipe is not None:
            folder.write_text(RECIPE, recipe)
        folder.write_text(EVENTS, "")
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open the folder of a run that has begun.

        Args:
            path: where.

        Returns:
            The folder.

        Raises:
            SecateurError: it is not a run folder.
        """
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise SecateurError(f"there is no run folder '{path}': check the path.")
        held = {entry.name for entry in folder.path.iterdir() if not _is_remains(entry)}
        # A run killed while it made its folder has a recipe and no log yet.
        if not held & {EVENTS, STATE} and held != {RECIPE}:
            raise SecateurError(f"'{path}' is not a run folder: it holds no {EVENTS}.")
        try:
            (folder.path / EVENTS).touch()
            for entry in folder.path.iterdir():
                if _is_remains(entry):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        except OSError as error:
            raise SecateurError(f"cannot write to the run folder '{path}': {error.strerror}.") from error
        return folder

    def is_free(self) -> bool:
        """Say whether a new run may be made here.

        Returns:
            True where nothing is, or an empty folder, or the remains of a killed write.
        """
        if not self.path.exists():
            return True
        return self.path.is_dir() and all(_is_remains(entry) for entry in self.path.iterdir())

    def discard_unless_begun(self) -> None:
        """Take away what a run wrote that failed before its first checkpoint."""
        if not (self.path / STATE).exists():
            for name in (EVENTS, RECIPE):
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def write_text(self, name: str, text: str) -> None:
        """Replace a text file as a whole.

        Args:
            name: the file.
            text: its content.
        """
        with replacing(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def read_text(self, name: str) -> str | None:
        """Read a text file.

        Args:
            name: the file.

        Returns:
            Its content; None where it cannot be read.
        """
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def write_json(self, name: str, content: Any) -> None:
        """Replace a JSON file as a whole.

        Args:
            name: the file.
            content: what to write.
        """
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file.

        Args:
            name: the file.

        Returns:
            Its content; None where it is not there, or damaged.
        """
        try:
            return json.loads(self.read_text(name) or "null")
        except ValueError:
            return None

    def append(self, event: Event) -> None:
        """Add a line to the log.

        Args:
            event: what happened.

        Raises:
            SecateurError: the disk is full or the folder is gone.
        """
        try:
            with (self.path / EVENTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(event.as_record()) + "\n")
        except OSError as error:
            raise SecateurError(
                f"cannot write to the run folder '{self.path}' ({error.strerror}): make room and go on with "
                "--resume; the last checkpoint is whole."
            ) from error

    def log_size(self) -> int:
        """Give the length of the log.

        Returns:
            Bytes.
        """
        return (self.path / EVENTS).stat().st_size

    def save_state(self, state: State, facts: dict[str, Any]) -> None:
        """Replace the checkpoint as a whole.

        Args:
            state: the pruner's state.
            facts: what else a resume needs, ready for JSON.
        """
        write_checkpoint(self.path / STATE, state, facts)

    def load_state(self, device: torch.device) -> tuple[State, dict[str, Any]] | None:
        """Read the checkpoint.

        Args:
            device: where the state's tensors go.

        Returns:
            The state and the facts; None where the run was killed before its first checkpoint.
        """
        path = self.path / STATE
        return read_checkpoint(path, device) if path.exists() else None

    def cut_log(self, size: int) -> None:
        """Drop what was logged after a checkpoint: a resumed run logs it again.

        Args:
            size: the log's length at the checkpoint, bytes.
        """
        with (self.path / EVENTS).open("r+b") as log:
            log.truncate(min(size, self.log_size()))

    def save_mask(self, mask: Mask) -> None:
        """Replace the mask file as a whole.

        Args:
            mask: the mask.
        """
        with replacing(self.path / MASK) as temporary:
            mask.save(temporary)

    def save_tensors(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Replace a file of what is not as it was trained any more; take it away where there is nothing.

        Args:
            name: the file.
            tensors: weights by layer, [out, in], pruned ones 0; or statistics by their names.
        """
        if not tensors:
            (self.path / name).unlink(missing_ok=True)  # what an end that was gone on from wrote
            return
        with replacing(self.path / name) as temporary:
            save_file({n: x.detach().cpu().contiguous() for n, x in tensors.items()}, str(temporary))


def _is_remains(entry: Path) -> bool:
    """Say whether a file is what a killed write left."""
    return entry.name.startswith(".") and entry.name.endswith(".part")
