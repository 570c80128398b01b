"""Which number a model gives to each class that the data name."""

import re
from collections.abc import Mapping, Sequence

from secateur.core.errors import SecateurError, nearest

_PLACEHOLDER = re.compile(r"LABEL_\d+")


def matching(names: Sequence[str], labels: Mapping[int, str], origin: str) -> tuple[int, ...] | None:
    """Find the model's number of each class of the data, by its name.

    Names are compared without regard to case, and to spaces, ``_`` and ``-``; a label of the model may be a
    list of synonyms with commas between them.

    Args:
        names: of the data's classes, in the order of their numbers there.
        labels: of the model, by number.
        origin: where the data come from, for the message.

    Returns:
        The model's numbers; None where either has no real names, or no name is in both, as with folders
        called n01440764.

    Raises:
        SecateurError: some names are the model's, but not all.
    """
    if not names or not labels or all(_PLACEHOLDER.fullmatch(label) for label in labels.values()):
        return None
    if len(names) <= len(labels) and all(
        _plain(name) == _plain(labels.get(number, "")) for number, name in enumerate(names)
    ):
        return tuple(range(len(names)))
    numbers = _numbers(labels)
    found = [numbers.get(_plain(name)) for name in names]
    if not any(number is not None for number in found):
        return None
    missing = [name for name, number in zip(names, found, strict=True) if number is None]
    if missing:
        raise SecateurError(
            f"{len(missing)} of the {len(names)} classes in {origin} are not among the model's labels, but "
            "others are, so that their order cannot be told: rename them as config.json has them "
            f"('{missing[0]}': {nearest(missing[0], _few(labels, missing[0]))})."
        )
    matched = tuple(number for number in found if number is not None)
    twice = next((at for at, number in enumerate(matched) if number in matched[:at]), None)
    if twice is not None:
        raise SecateurError(
            f"two classes in {origin} are the model's label '{labels[matched[twice]]}', '{names[twice]}' one "
            "of them: join them, or rename one."
        )
    return matched


def _numbers(labels: Mapping[int, str]) -> dict[str, int]:
    """Give the number of each label; of each synonym, where only one label has it."""
    whole: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    for number, label in labels.items():
        whole.setdefault(_plain(label), []).append(number)
        for part in {_plain(part) for part in label.split(",")}:
            parts.setdefault(part, []).append(number)
    return {name: found[0] for name, found in {**parts, **whole}.items() if len(found) == 1 and name}


def _plain(name: str) -> str:
    """Take out what spellings of one name differ in."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _few(labels: Mapping[int, str], name: str) -> list[str]:
    """Give the labels that could be meant: all where they are few, else those that begin alike."""
    every = list(labels.values())
    alike = [label for label in every if label[:1].casefold() == name[:1].casefold()]
    return every if len(every) <= 20 else (alike or every)[:20]
