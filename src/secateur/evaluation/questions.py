"""Files of multiple-choice questions: rows of JSON, recognised by their columns -> what a model is asked."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.core.errors import SecateurError

_GZIP = b"\x1f\x8b"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """One question: texts to score, of which one is right.

    Attributes:
        contexts: what each choice follows; ``""`` where it begins the text.
        choices: what is scored after its context, the space between them included.
        lengths: characters of each choice without that space: what normalised scores are divided by.
        gold: which choice is right.
        group: what kind of question it is; None where the file does not say.
    """

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    lengths: tuple[int, ...]
    gold: int
    group: str | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of question file.

    Attributes:
        name: such as ``"piqa"``.
        columns: what its rows have.
        ask: turns a row into a question; raises ValueError with what is wrong.
        normalised: whether scores divided by the choices' lengths are customary.
    """

    name: str
    columns: tuple[str, ...]
    ask: Callable[[Row], Question]
    normalised: bool = True


def read_questions(path: str | Path, *, limit: int | None = None) -> tuple[Kind, list[Question]]:
    """Read a .jsonl or .jsonl.gz file of questions of one of the `KINDS`.

    The kind is recognised by the columns of the first row. With a limit, the questions are taken
    evenly from the whole file: what a file is sorted by is then represented fairly. (The
    lm-evaluation-harness takes the first ones.)

    Args:
        path: the file.
        limit: at most so many questions, > 0; None: all.

    Returns:
        The kind and the questions in the order of the file.

    Raises:
        SecateurError: the file is missing, empty, of no known kind, or a line of it cannot be used.
    """
    if limit is not None and limit < 1:
        raise SecateurError(f"the limit is {limit}: ask at least 1 question.")
    path = Path(path).expanduser()
    rows = list(_rows(path))
    if not rows:
        raise SecateurError(f"'{path}' holds no questions: give a .jsonl file with one question a line.")
    kind = _recognise(path, rows[0][1])
    count = len(rows) if limit is None else min(limit, len(rows))
    return kind, [_ask(kind, path, *rows[at * len(rows) // count]) for at in range(count)]


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Give the number and content of each line that is not blank."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SecateurError(
                f"line {number} of '{path}' is not JSON ({error}): write one question a line, as an object."
            ) from error
        if not isinstance(row, dict):
            raise SecateurError(
                f"line {number} of '{path}' is no JSON object: write one question a line, such as "
                '{"context": "...", "choices": ["...", "..."], "answer": 0}.'
            )
        yield number, row


def _text(path: Path) -> str:
    """Read a file, compressed or not."""
    if not path.is_file():
        raise SecateurError(f"there is no file '{path}': give a .jsonl or .jsonl.gz file of questions.")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(_GZIP) else content
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SecateurError(
            f"'{path}' cannot be read ({error}): give a .jsonl or .jsonl.gz file in UTF-8."
        ) from error


def _recognise(path: Path, row: Row) -> Kind:
    """Find the kind whose columns a row has."""
    found = next((kind for kind in KINDS if set(kind.columns) <= set(row)), None)
    if found is None:
        known = "; ".join(f"{kind.name} ({', '.join(kind.columns)})" for kind in KINDS)
        raise SecateurError(
            f"'{path}' has the columns {', '.join(row) or '(none)'}, which are of no known kind of question: "
            f"rename them to those of one of {known}."
        )
    return found


def _ask(kind: Kind, path: Path, number: int, row: Row) -> Question:
    """Turn a row into a question."""
    missing = [column for column in kind.columns if column not in row]
    if missing:
        raise SecateurError(
            f"line {number} of '{path}' has no {' and no '.join(missing)}: every line needs the columns of "
            f"the first, {', '.join(kind.columns)}."
        )
    try:
        return kind.ask(row)
    except ValueError as error:
        raise SecateurError(f"line {number} of '{path}' cannot be used: {error}.") from error


def _question(context: str, choices: list[str], gold: int, group: str | None = None) -> Question:
    """Make a question with one context, from which a space separates each choice."""
    if len(choices) < 2:
        raise ValueError(f"it offers {len(choices)} choices, and needs at least 2")
    _within(gold, len(choices))
    for at, choice in enumerate(choices):
        if not choice.strip():
            raise ValueError(f"choice {at} is empty")
    gaps = ["" if not context or context[-1].isspace() or c[0].isspace() else " " for c in choices]
    lengths = tuple(len(choice) for choice in choices)
    spaced = tuple(gap + choice for gap, choice in zip(gaps, choices, strict=True))
    return Question((context,) * len(choices), spaced, lengths, gold, group)


def _within(gold: int, count: int) -> None:
    """See that an answer is one of the choices."""
    if not 0 <= gold < count:
        raise ValueError(f"the answer is {gold}, but there are choices 0 to {count - 1} only")


def _piqa(row: Row) -> Question:
    """Ask as Bisk et al. (2020, arXiv:1911.11641) do in the harness's words."""
    context = f"Question: {_word(row, 'goal')}\nAnswer:"
    return _question(context, [_word(row, "sol1"), _word(row, "sol2")], _number(row, "label"))


def _prepared(row: Row) -> Question:
    """Ask a question that is written out already."""
    return _question(_word(row, "query"), _words(row["choices"], "choices"), _number(row, "gold"))


def _arc(row: Row) -> Question:
    """Ask as Clark et al. (2018, arXiv:1803.05457) do in the harness's words."""
    offered = row["choices"]
    if not isinstance(offered, dict) or not {"text", "label"} <= set(offered):
        raise ValueError('choices is no object with the lists "text" and "label"')
    texts, labels = _words(offered["text"], "choices.text"), _words(offered["label"], "choices.label")
    key = row["answerKey"]
    if len(texts) != len(labels):
        raise ValueError(f"there are {len(texts)} texts and {len(labels)} labels")
    if key not in labels:
        raise ValueError(f"answerKey is {key!r}, but the labels are {', '.join(labels)}")
    return _question(f"Question: {_word(row, 'question')}\nAnswer:", texts, labels.index(key))


def _winogrande(row: Row) -> Question:
    """Ask for the rest of the sentence after each filling (Trinh and Le, 2018, arXiv:1806.02847)."""
    before, blank, after = _word(row, "sentence").partition("_")
    rest = after.strip()
    if not blank or not rest:
        raise ValueError("the sentence needs a blank, written _, and words after it")
    gold = _number(row, "answer") - 1
    if gold not in (0, 1):
        raise ValueError(f"the answer is {row['answer']!r}, but must be 1 or 2")
    contexts = (before + _word(row, "option1"), before + _word(row, "option2"))
    return Question(contexts, (f" {rest}",) * 2, (len(rest),) * 2, gold)


def _blimp(row: Row) -> Question:
    """Ask which of two whole sentences is likelier (Warstadt et al., 2020, arXiv:1912.00582)."""
    pair = [_word(row, "sentence_good"), _word(row, "sentence_bad")]
    group = row.get("UID", row.get("field"))
    return _question("", pair, 0, group if isinstance(group, str) else None)


def _generic(row: Row) -> Question:
    """Ask what anybody wrote."""
    context = row["context"]
    if not isinstance(context, str):
        raise ValueError("context is no text")
    return _question(context, _words(row["choices"], "choices"), _number(row, "answer"))


def _word(row: Row, column: str) -> str:
    """Give a text that is not empty."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column} is {'empty' if isinstance(value, str) else 'no text'}")
    return value


def _words(value: Any, what: str) -> list[str]:
    """Give a list of texts."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{what} is no list of texts")
    return value


def _number(row: Row, column: str) -> int:
    """Give a whole number, which may be written as text."""
    value = row[column]
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{column} is {value!r}, and not the number of a choice") from None
    return int(value)


KINDS = (
    Kind("piqa", ("goal", "sol1", "sol2", "label"), _piqa),
    Kind("arc", ("query", "choices", "gold"), _prepared),
    Kind("arc", ("question", "choices", "answerKey"), _arc),
    # Both choices of WinoGrande are the same text, and BLiMP's sentences are compared as they are.
    Kind("winogrande", ("sentence", "option1", "option2", "answer"), _winogrande, normalised=False),
    Kind("blimp", ("sentence_good", "sentence_bad"), _blimp, normalised=False),
    Kind("choices", ("context", "choices", "answer"), _generic),
)
