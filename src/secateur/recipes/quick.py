"""A recipe from a model and data alone: what each is shows in its path."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from secateur.core.errors import SecateurError
from secateur.core.registry import lookup
from secateur.pretrained import PROCESSOR, is_folder, load_config, read_config

_VISION = "ForImageClassification"  # DeiTForImageClassificationWithTeacher is one, too
_KINDS = {
    **dict.fromkeys((".zip",), "images"),
    **dict.fromkeys((".npz", ".pt", ".pth", ".safetensors"), "arrays"),
    **dict.fromkeys((".parquet", ".json", ".jsonl", ".csv", ".arrow"), "huggingface"),
    **dict.fromkeys((".txt", ".gz", ".md"), "text"),
}
_FIRST = {
    "dataset_info.json": "huggingface", "dataset_dict.json": "huggingface", "data/*.parquet": "huggingface",
    "*.npy": "arrays", "*-idx3-ubyte*": "idx", "[!.]*/": "images",
    "*.parquet": "huggingface", "*.json*": "huggingface", "*.csv": "huggingface", "*.arrow": "huggingface",
}  # fmt: skip
_PICTURES = ("images", "arrays", "idx")
_TIMM = "timm:"
# Of data alone, not of how pictures are prepared.
_OWN = {
    "path", "folder", "division", "augmentation", "configuration", "split", "evaluation_split",
    "evaluation_inputs", "evaluation_labels",
}  # fmt: skip
# No picture is set aside for calibration, and but one is read for it.
_ALL = {"evaluation_fraction": 0.0, "limit": 1}
_KNOWN = (
    "a folder with one folder of pictures a class, a .zip of it, an .npz, .pt or .safetensors file of arrays "
    "or a data set of Hugging Face"
)


def quick_recipe(model: str, data: str, given: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Write the recipe that prunes a model by the default method.

    Args:
        model: the folder of a model of Hugging Face, or its name on the hub; ``timm:NAME``; or a function
            that builds a network, ``package.module:function`` or ``path/to/file.py:function``.
        data: for a language model a file of text, or a data set; for any other a folder or .zip of pictures,
            a file of arrays, or a data set.
        given: fields of the recipe that are set beside.

    Returns:
        The recipe as a table.
    """
    source, pictures = _model(model, data, given)
    return {
        "about": f"{model} by the default method",
        "data": {"name": "text", "path": data, "tokenizer": model}
        if pictures is None
        else _data(data, pictures),
        "model": source,
        "run": {"density": 0.5, "budget": "10min"},
    }


def title(model: str) -> str:
    """Give a short name of a model, for its run folder.

    Args:
        model: as for `quick_recipe`.

    Returns:
        The name.
    """
    name = model.rpartition(":")[2] if _is_function(model) or model.startswith(_TIMM) else model
    return Path(name).expanduser().resolve().name or "model"


def is_image_classifier(model: str) -> bool:
    """Say whether a local folder, or a name on the hub, is that of an image classifier.

    Args:
        model: the folder or the name.

    Returns:
        True where its config.json says so.
    """
    config = read_config(model)
    if not config and not is_folder(model) and not Path(model).exists():
        try:
            config = load_config(model).to_dict()
        except SecateurError:
            return False
    names = config.get("architectures") or ()
    return any(_VISION in str(name) for name in names)


def other_pictures(own: Mapping[str, Any], data: str) -> dict[str, Any]:
    """Write the data table of other pictures, prepared as those of a recipe are.

    Args:
        own: the data table of the recipe, with every default written out.
        data: as for `quick_recipe`, of pictures.

    Returns:
        The table: where the pictures are, and of the recipe's settings those that it has, too, but how they
        are divided and varied; names of arrays and columns are kept for data of the same kind. All evaluate,
        but where they have an evaluation part of their own.
    """
    table = _data(data, {})
    kept = {field.name for field in fields(lookup("data", table["name"]))} - _OWN
    if own.get("name") != table["name"]:
        kept -= {"inputs", "labels"}
    return {name: value for name, value in own.items() if name in kept} | table | {"division": _ALL}


def _model(model: str, data: str, given: frozenset[str]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Give the model's table, and how its data prepare pictures; None for a language model."""
    if model.startswith(_TIMM):
        return _timm(model.removeprefix(_TIMM), given)
    if _is_function(model):
        return {"name": "function", "target": model}, {}
    folder, config = Path(model).expanduser(), read_config(model)
    if "pretrained_cfg" in config:
        files = (folder / name for name in ("model.safetensors", "pytorch_model.bin"))
        weights = next((file for file in files if file.is_file()), folder / "model.safetensors")
        table = {
            "name": "timm", "model": str(config.get("architecture")), "weights": str(weights),
            "classes": config.get("num_classes"),
        }  # fmt: skip
        return {key: value for key, value in table.items() if value is not None}, {"processor": model}
    kind, local = _kind(data), folder.exists() or is_folder(model)
    language = {"name": "causal-lm", "path": model}
    if kind == "text" and not config:  # the hub is asked only about data that could be of either kind
        return language, None
    if not config and not local and kind in _PICTURES:
        load_config(model)  # says so where there is no such model, rather than no such processor
    is_classifier = is_image_classifier(model) if config or kind not in _PICTURES else True
    if is_classifier and kind == "text":
        raise SecateurError(f"'{model}' is an image classifier, and '{data}' a text: give as data {_KNOWN}.")
    if not is_classifier and kind in _PICTURES:
        names = " and ".join(map(str, config.get("architectures") or ())) or "none"
        raise SecateurError(
            f"'{model}' is no image classifier (architectures in its config.json: {names}), but '{data}' is "
            "for one: give a text, or another model."
        )
    if not is_classifier:
        return language, None
    table = {"name": "image-classifier", "path": model}
    if not local or (folder / PROCESSOR).is_file():
        return table, {"processor": model}
    size = config.get("image_size")
    sides = [size, size] if isinstance(size, int) else size
    return table, {"size": sides} if sides else {}


def _timm(name: str, given: frozenset[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the table of a model of timm, and how timm prepares its pictures."""
    from secateur.models.timm import timm_config
    from secateur.tasks.preparation import timm_settings

    settings = timm_settings(timm_config(name), f"timm:{name}")
    if not {field.removeprefix("model.") for field in given} & {"weights", "pretrained"}:
        raise SecateurError(
            f"'timm:{name}' has random weights as long as nobody gives it others: give --weights FILE, or "
            "--pretrained true to download them."
        )
    return {"name": "timm", "model": name}, settings


def _data(data: str, pictures: dict[str, Any]) -> dict[str, Any]:
    """Give the table of a data source, with those of the settings of pictures that it has."""
    place, kind = Path(data).expanduser(), _kind(data)
    if kind is None and not place.exists() and not is_folder(data):
        kind = "huggingface"  # a name on the hub
    if kind in (None, "text") or (is_folder(data) and not place.exists()):
        what = "is of no kind that is known" if place.exists() else "is not there"
        raise SecateurError(f"'{data}' {what}: give as data {_KNOWN}.")
    table = {"name": kind, ("folder" if kind in ("images", "idx") else "path"): data}
    known = {"arrays": {"processor"} if "processor" in pictures else {"normalisation"}, "idx": set[str]()}
    return table | {key: value for key, value in pictures.items() if key in known.get(kind, pictures)}


def _kind(data: str) -> str | None:
    """Say which data source reads a file or folder; None where that cannot be seen."""
    place = Path(data).expanduser()
    if place.is_dir():
        return next((kind for pattern, kind in _FIRST.items() if any(place.glob(pattern))), "images")
    return _KINDS.get(place.suffix.lower())


def _is_function(model: str) -> bool:
    """Say whether a model is given as a function that builds it."""
    place, colon, name = model.rpartition(":")
    return bool(colon) and name.isidentifier() and not Path(model).exists() and bool(place)
