"""Text for language models: documents, tokenised and packed into sequences of one length."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.core.data import Data
from secateur.core.errors import SecateurError
from secateur.core.registry import register
from secateur.core.seeds import generator
from secateur.pretrained import load_tokenizer, positions
from secateur.tasks.causal_lm import CausalLM, Sequences
from secateur.tasks.documents import read_documents
from secateur.tasks.stream import stream

__all__ = ["Text", "pack", "read_documents"]

# Tokens of a sequence, where the model does not have fewer.
_CONTEXT = 512


@register("data", "text")
@dataclass(frozen=True)
class Text(Data):
    """Documents packed one after the other into sequences, without padding.

    Each document is tokenised with the special tokens that the tokenizer puts around a text (or, if it
    puts none, followed by its end-of-text token). The first token of a document is not predicted. What is
    left at the end and too short for a sequence is dropped. Evaluation sequences are the last ones, so
    that at most one document is in both parts.

    Attributes:
        path: a .txt, .jsonl or .parquet file, a folder of a Hugging Face data set, or its name on the hub.
        tokenizer: the folder or name of the tokenizer: that of the model.
        context: tokens in a sequence; None: as many as the model has positions, at most 512.
        column: the field that holds the text; None: text, content, ...
        split: of a Hugging Face data set.
        evaluation_path: text to evaluate on; None: a part of `path`.
        evaluation_fraction: which part, in (0, 1), where there is no `evaluation_path`.
        limit: calibration sequences to take, drawn at random; None: all.
        evaluation_limit: evaluation sequences to take, the first; None: all.
        seed: of the draw.

    Raises:
        SecateurError: a number is out of range.
    """

    path: str
    tokenizer: str
    context: int | None = None
    column: str | None = None
    split: str = "train"
    evaluation_path: str | None = None
    evaluation_fraction: float = 0.2
    limit: int | None = None
    evaluation_limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.context is not None and self.context < 2:
            raise SecateurError(f"context is {self.context}: a sequence needs at least 2 tokens.")
        if not 0 < self.evaluation_fraction < 1:
            raise SecateurError(
                f"evaluation_fraction is {self.evaluation_fraction}, but a fraction between 0 and 1 is "
                "needed, such as 0.2."
            )
        for name, limit in (("limit", self.limit), ("evaluation_limit", self.evaluation_limit)):
            if limit is not None and limit < 1:
                raise SecateurError(f"{name} is {limit}: ask for at least 1 sequence, or leave it out.")

    def task(self) -> CausalLM:
        """Read, tokenise, pack and divide the text.

        Returns:
            The task.

        Raises:
            SecateurError: the text cannot be read, or is too short.
        """
        tokenizer = load_tokenizer(self.tokenizer)
        length = self.context or min(_CONTEXT, positions(self.tokenizer) or _CONTEXT)
        everything = self._pack(tokenizer, self.path, length)
        if self.evaluation_path is not None:
            evaluation = self._pack(tokenizer, self.evaluation_path, length)
            calibration = everything
        else:
            count = round(self.evaluation_fraction * len(everything))
            if count in (0, len(everything)):
                raise SecateurError(
                    f"'{self.path}' gives {len(everything)} sequences of {length} tokens, too few "
                    f"to evaluate on a part of {self.evaluation_fraction}: give more text, a smaller "
                    "context or an evaluation_path."
                )
            calibration, evaluation = (
                _rows(everything, slice(0, -count)),
                _rows(everything, slice(-count, None)),
            )
        return CausalLM(
            _rows(calibration, self._draw(len(calibration))),
            _rows(evaluation, self._first(len(evaluation))),
            disjoint=self.path != self.evaluation_path,
            origin=f"'{self.path}'",
            tokenizer=tokenizer,
        )

    def _pack(self, tokenizer: Any, path: str, length: int) -> Sequences:
        return pack(read_documents(path, self.column, self.split), tokenizer, length, f"'{path}'")

    def _draw(self, size: int) -> Tensor:
        """Take a number of calibration sequences at random."""
        if self.limit is None or self.limit == size:
            return torch.arange(size)
        if self.limit > size:
            raise SecateurError(
                f"limit asks for {self.limit} sequences, but '{self.path}' gives only {size}: lower it, or "
                "give more text."
            )
        order = torch.randperm(size, generator=generator(self.seed, "limit/calibration"))
        return order[: self.limit].sort().values

    def _first(self, size: int) -> slice:
        """Take the first of the evaluation sequences."""
        if self.evaluation_limit is not None and self.evaluation_limit > size:
            raise SecateurError(
                f"evaluation_limit asks for {self.evaluation_limit} sequences to evaluate on, but "
                f"'{self.evaluation_path or self.path}' gives only {size}: lower it, or give more text."
            )
        return slice(0, self.evaluation_limit)


def pack(documents: Iterable[str], tokenizer: Any, length: int, origin: str) -> Sequences:
    """Tokenise documents and lay them one after the other into sequences.

    Args:
        documents: texts.
        tokenizer: of transformers.
        length: tokens in a sequence.
        origin: where they come from, for the message.

    Returns:
        The sequences; the first token of each document is nobody's target.

    Raises:
        SecateurError: they do not fill one sequence.
    """
    text = stream(documents, tokenizer)
    count = len(text.ids) // length
    if count == 0:
        raise SecateurError(
            f"the text of {origin} has {len(text.ids)} tokens, fewer than one sequence of {length}: give "
            "more text, or a smaller context."
        )
    used = count * length
    first = ~text.counted[:used].reshape(count, length)
    return Sequences.of(text.ids[:used].reshape(count, length), first)


def _rows(sequences: Sequences, index: Tensor | slice) -> Sequences:
    """Take some of the sequences."""
    return Sequences(sequences.ids[index], sequences.targets[index])
