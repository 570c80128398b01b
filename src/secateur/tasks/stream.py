"""Documents -> one row of tokens, for calibration and for perplexity."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from secateur.core.errors import SecateurError

_TOGETHER = 256


@dataclass(frozen=True, eq=False)
class Stream:
    """Documents as one row of tokens.

    Attributes:
        ids: the tokens.
        counted: False where a document begins: nothing foretells that token.
    """

    ids: Int[Tensor, " n"]
    counted: Bool[Tensor, " n"]


def stream(documents: Iterable[str], tokenizer: Any) -> Stream:
    """Tokenise documents and lay them one after the other.

    Each has the special tokens that the tokenizer puts around a text, or, where it puts none, is followed
    by the end-of-text token.

    Args:
        documents: the texts.
        tokenizer: as of transformers.

    Returns:
        The tokens.

    Raises:
        SecateurError: there are none.
    """
    special, end = set(tokenizer.all_special_ids), tokenizer.eos_token_id
    pieces: list[Tensor] = []
    starts: list[int] = []
    at = 0
    for ids in _tokenised(documents, tokenizer):
        if not ids:
            continue
        if end is not None and ids[0] not in special and ids[-1] not in special:
            ids = [*ids, end]
        starts.append(at)
        pieces.append(torch.tensor(ids, dtype=torch.int32))  # a list takes nine times the room
        at += len(ids)
    if not pieces:
        raise SecateurError("the tokenizer makes no tokens of the text: give a file with some.")
    counted = torch.ones(at, dtype=torch.bool)
    counted[starts] = False
    return Stream(torch.cat(pieces), counted)


def _tokenised(documents: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """Tokenise many documents at a time, which tokenizers do in parallel."""
    waiting: list[str] = []
    for document in documents:
        waiting.append(document)
        if len(waiting) == _TOGETHER:
            yield from tokenizer(waiting, verbose=False)["input_ids"]
            waiting.clear()
    if waiting:
        yield from tokenizer(waiting, verbose=False)["input_ids"]
