"""Documents from files of text."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from secateur.core.errors import SecateurError, nearest
from secateur.tasks.huggingface import open_splits

_COLUMNS = ("text", "content", "document", "story", "sentence", "body")
# What separates documents in plain text, where anything does.
_SEPARATOR = "<|endoftext|>"


def read_documents(path: str, column: str | None = None, split: str = "train") -> Iterator[str]:
    """Read documents one after the other, of which none is empty.

    Args:
        path: a .txt (or .raw) file, one document or several separated by ``<|endoftext|>``; a .jsonl file,
            one object a line; both may be gzipped; a .parquet or .csv file; a folder of a Hugging Face data
            set, or its name on the hub.
        column: which field holds the text; None: text, content, ...
        split: of a data set.

    Yields:
        The documents.

    Raises:
        SecateurError: there is no such file, it cannot be read, or it holds no text.
    """
    file = Path(path).expanduser()
    kinds = [suffix.lower() for suffix in file.suffixes if suffix.lower() != ".gz"]
    kind = kinds[-1] if kinds else ""
    found = False
    if file.is_file() and kind in (".jsonl", ".json", ".ndjson"):
        documents = _from_lines(file, column)
    elif file.is_file() and kind not in (".parquet", ".csv", ".arrow"):
        documents = _from_text(file)
    elif kind in (".txt", ".raw", ".jsonl", ".json", ".ndjson", ".parquet", ".csv") and not file.exists():
        raise SecateurError(f"there is no file '{path}': give a .txt, .jsonl or .parquet file of text.")
    else:
        documents = _from_splits(path, column, split)
    for document in documents:
        if document.strip():
            found = True
            yield document
    if not found:
        raise SecateurError(f"'{path}' holds no text: give a file with some.")


def _open(file: Path) -> Iterator[str]:
    """Read the lines of a file that may be gzipped."""
    opener = gzip.open if file.suffix.lower() == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8") as lines:
            yield from lines
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise SecateurError(
            f"cannot read '{file}' as text ({error}): give a .txt, .jsonl or .parquet file in UTF-8."
        ) from error


def _from_text(file: Path) -> Iterator[str]:
    """Read plain text."""
    yield from "".join(_open(file)).split(_SEPARATOR)


def _from_lines(file: Path, column: str | None) -> Iterator[str]:
    """Read one JSON object a line."""
    for number, line in enumerate(_open(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SecateurError(
                f"line {number} of '{file}' is not JSON ({error}): mend or remove it."
            ) from error
        if isinstance(row, str):
            yield row
            continue
        if not isinstance(row, dict):
            raise SecateurError(f"line {number} of '{file}' is no object with a field of text: mend it.")
        name = _column(list(row), column, f"line {number} of '{file}'")
        if not isinstance(row[name], str):
            raise SecateurError(f"the field '{name}' in line {number} of '{file}' is no text: name another.")
        yield row[name]


def _from_splits(path: str, column: str | None, split: str) -> Iterator[str]:
    """Read a data set of Hugging Face."""
    splits = open_splits(path, None)
    name = split if split in splits else next(iter(splits)) if len(splits) == 1 else None
    if name is None:
        raise SecateurError(f"'{path}' has no split '{split}': {nearest(split, splits)}.")
    rows = splits[name]
    field = _column(list(rows.column_names), column, f"'{path}'")
    for row in rows:
        if not isinstance(row[field], str):
            raise SecateurError(f"the column '{field}' of '{path}' holds no text: name another.")
        yield row[field]


def _column(columns: list[str], column: str | None, where: str) -> str:
    """Give the field asked for, or the first usual one."""
    found = next((c for c in _COLUMNS if c in columns), None) if column is None else column
    if found is None or found not in columns:
        raise SecateurError(
            f"{where} has no field '{column or 'text'}' but {', '.join(columns) or 'none at all'}: say which "
            "holds the text, with column."
        )
    return found
