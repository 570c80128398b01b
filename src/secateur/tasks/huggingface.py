"""Data sets in the formats of Hugging Face's `datasets`."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from secateur.core.errors import SecateurError, in_short, nearest
from secateur.core.registry import register
from secateur.pretrained import hub_answers
from secateur.tasks.augmentation import Augmentation
from secateur.tasks.checks import as_inputs
from secateur.tasks.division import Division
from secateur.tasks.pictures import Decoder, Resampling
from secateur.tasks.preparation import prepare
from secateur.tasks.samples import Labelled, Normalisation, Samples
from secateur.tasks.source import Source

_INPUTS = ("image", "img", "pixel_values", "images", "input", "inputs", "x", "features")
_LABELS = ("label", "labels", "target", "class", "y", "fine_label")
_EVALUATION = ("test", "validation", "valid", "val")
_FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}


@register("data", "huggingface")
@dataclass(frozen=True)
class HuggingFace(Source):
    """A data set by its name on the hub, or from local files: pictures or rows of numbers, and labels.

    Attributes:
        path: a folder written by `save_to_disk`, a .parquet, .json, .jsonl or .csv file, a folder
            of such files, or a name on the hub.
        configuration: which variant of the data set; None: the only one.
        split: what calibrates.
        evaluation_split: what evaluates; None: test or validation, else a part of `split`.
        inputs: the column of inputs; None: the first of image, img, pixel_values, ... there is.
        labels: the column of labels, numbers or words; None: label, labels, ...
        size: height and width to resize pictures to; None: all have one size.
        channels: 1 (grey) or 3 (colour), for pictures.
        normalisation: of each batch.
        division: of the samples; only the rows it takes are read.
        crop: the part of each side that is cut out of the middle, as of `Images`; None: all of it.
        resampling: how pictures are resized.
        processor: a folder with a model's preprocessor_config.json (or timm's config.json), or a name on the
            hub: pictures are prepared as that says, instead of by size, crop and normalisation.
        augmentation: how pictures are varied where gradients of mini-batches are taken; by default not.
    """

    path: str
    configuration: str | None = None
    split: str = "train"
    evaluation_split: str | None = None
    inputs: str | None = None
    labels: str | None = None
    size: tuple[int, int] | None = None
    channels: int = 3
    normalisation: Normalisation = field(default_factory=Normalisation)
    division: Division = field(default_factory=Division)
    crop: float | None = None
    resampling: Resampling = "bilinear"
    processor: str | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    def load(self) -> Samples:
        """Read the rows.

        Returns:
            The samples.
        """
        prepared = prepare(self)
        splits = open_splits(self.path, self.configuration)
        name = self._split(splits, self.split)
        other = self.evaluation_split or next((s for s in _EVALUATION if s in splits and s != name), None)
        pile = splits[name]
        separate = splits[self._split(splits, other)] if other is not None and other != name else None
        plan = self.division.plan(len(pile), None if separate is None else len(separate), f"'{self.path}'")
        inputs = self._column(pile, self.inputs, _INPUTS, "inputs")
        labels = self._column(pile, self.labels, _LABELS, "labels")
        class_names = _class_names(pile, labels)
        evaluation = pile if separate is None else separate
        return Samples(
            self._read(pile, plan.calibration, (inputs, labels), class_names, prepared.decoder),
            self._read(evaluation, plan.evaluation, (inputs, labels), class_names, prepared.decoder),
            class_names,
            prepared.normalisation,
            plan.disjoint and other != name,
            f"'{self.path}'",
            processor=prepared.processor,
            augmentation=self.augmentation,
        )

    def _split(self, splits: dict[str, Any], name: str) -> str:
        """See that a split is there; a data set of a single split needs no name."""
        if name in splits:
            return name
        if len(splits) == 1 and name == "train":
            return next(iter(splits))
        raise SecateurError(f"'{self.path}' has no split '{name}': {nearest(name, splits)}.")

    def _column(self, rows: Any, name: str | None, usual: tuple[str, ...], what: str) -> str:
        """Give the column asked for, or the first usual one."""
        columns = list(rows.column_names)
        found = next((c for c in usual if c in columns), None) if name is None else name
        if found is None:
            raise SecateurError(
                f"'{self.path}' has the columns {', '.join(columns)}: say which holds the {what}, such as "
                f'{what} = "{columns[0]}".'
            )
        if found not in columns:
            raise SecateurError(f"'{self.path}' has no column '{found}': {nearest(found, columns)}.")
        return found

    def _read(
        self,
        rows: Any,
        index: Int[Tensor, " n"],
        columns: tuple[str, str],
        class_names: tuple[str, ...],
        decoder: Decoder,
    ) -> Labelled:
        """Read the chosen rows of both columns."""
        inputs, labels = columns
        chosen = rows.select(index.tolist())
        targets: Sequence[Any] = chosen[labels][:]
        if any(isinstance(target, str) for target in targets):
            targets = [self._number(target, class_names) for target in targets]
        return Labelled.checked(self._inputs(chosen, inputs, decoder), targets, f"'{self.path}'")

    def _number(self, word: Any, class_names: tuple[str, ...]) -> int:
        """Give the number of a class by its name."""
        if word not in class_names:
            raise SecateurError(
                f"the evaluation samples of '{self.path}' have the label '{word}', which no calibration "
                "sample has."
            )
        return class_names.index(word)

    def _inputs(self, rows: Any, column: str, decoder: Decoder) -> Tensor:
        """Decode pictures, one at a time; stack anything else."""
        cells = (row[column] for row in rows.select_columns([column]))
        first = next((cell for cell in cells if cell is not None), None)
        if hasattr(first, "convert") or (isinstance(first, dict) and "bytes" in first):
            pictures = (row[column] for row in rows.select_columns([column]))
            place = f"of column '{column}' of '{self.path}'"
            return decoder.stack(pictures, len(rows), lambda at: f"{at} {place}")
        if self.processor is not None:
            raise SecateurError(
                f"the column '{column}' of '{self.path}' holds no pictures: leave out processor."
            )
        if isinstance(first, str):
            raise SecateurError(
                f"the column '{column}' of '{self.path}' holds text: classification takes pictures or rows "
                "of numbers, so turn the text into numbers first, or name another column."
            )
        numbers = as_inputs(rows[column][:], f"'{self.path}' (column '{column}')")
        # JSON and CSV hold double precision by default, which no model wants.
        return numbers.float() if numbers.dtype == torch.float64 else numbers


def open_splits(path: str, configuration: str | None) -> dict[str, Any]:
    """Open a data set, local or from the hub.

    Args:
        path: a local folder or file, or a name on the hub.
        configuration: which variant; None: the only one.

    Returns:
        The splits by name.

    Raises:
        SecateurError: `datasets` is not installed, or the data set cannot be opened.
    """
    local = Path(path)
    try:
        import datasets
    except ImportError as error:
        there = "" if local.exists() else f"there is no '{path}' here; as a name on the hub, "
        raise SecateurError(
            f"{there}this data source needs datasets, which is not installed: pip install 'secateur[hf]'."
        ) from error
    try:
        with _quiet(reachable=local.exists() or hub_answers()):
            if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
                found = datasets.load_from_disk(path)
            elif local.is_file() and local.suffix in _FORMATS:
                found = datasets.load_dataset(_FORMATS[local.suffix], data_files=path)
            else:
                found = datasets.load_dataset(path, configuration)
    except Exception as error:  # datasets raises errors of many kinds, its dependencies' among them
        reason = in_short(error)
        if local.exists():
            raise SecateurError(
                f"cannot read the data set in '{path}' ({reason}): give a folder written "
                "by save_to_disk, or .parquet, .json, .jsonl or .csv files."
            ) from error
        raise SecateurError(
            f"cannot get the data set '{path}' ({reason}): without a network, give a folder written by "
            "save_to_disk, a local .parquet, .json, .jsonl or .csv file, or (data images) a folder with one "
            "folder of pictures a class, or a .zip of it."
        ) from error
    if isinstance(found, datasets.DatasetDict):
        return {str(name): rows for name, rows in found.items()}
    return {str(found.split or "train"): found}


@contextmanager
def _quiet(*, reachable: bool) -> Iterator[None]:
    """Show no progress bars and log nothing; without a hub, use what is cached and do not try again."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    switches: list[Any] = [import_module(name) for name in ("datasets.config", "huggingface_hub.constants")]
    offline = [switch.HF_HUB_OFFLINE for switch in switches]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    for switch in switches:
        switch.HF_HUB_OFFLINE = switch.HF_HUB_OFFLINE or not reachable
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for switch, value in zip(switches, offline, strict=True):
            switch.HF_HUB_OFFLINE = value


def _class_names(rows: Any, labels: str) -> tuple[str, ...]:
    """Name the classes: as the data set does, or by the words used as labels."""
    declared = getattr(rows.features[labels], "names", None)
    if declared:
        return tuple(declared)
    if rows.features[labels].dtype in ("string", "large_string"):
        return tuple(str(word) for word in np.unique(np.asarray(rows[labels][:], dtype=object).astype(str)))
    return ()
