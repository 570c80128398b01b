"""How pictures are prepared for a model: by hand, or as the model's own image processor says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from secateur.core.errors import SecateurError, in_short
from secateur.pretrained import load_processor, read_config
from secateur.tasks.pictures import Decoder, Pictures, Resampling, opened
from secateur.tasks.samples import Normalisation

_BY_HAND = "leave processor out, and give size, crop and normalisation by hand"


@runtime_checkable
class Settings(Protocol):
    """The settings that data sources of pictures share; `Images` says what each means."""

    @property
    def size(self) -> tuple[int, int] | None: ...  # noqa: D102
    @property
    def crop(self) -> float | None: ...  # noqa: D102
    @property
    def resampling(self) -> Resampling: ...  # noqa: D102
    @property
    def channels(self) -> int: ...  # noqa: D102
    @property
    def processor(self) -> str | None: ...  # noqa: D102
    @property
    def normalisation(self) -> Normalisation: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Preparation:
    """What is done to pictures before a model sees them.

    Attributes:
        decoder: gives each picture as bytes; done once.
        normalisation: of each batch.
        processor: the model's image processor, where there is one; it is saved beside the model.
    """

    decoder: Decoder
    normalisation: Normalisation
    processor: Any = None


@dataclass(frozen=True, eq=False)
class Processed(Decoder):
    """Pictures resized and cropped by an image processor of transformers.

    Attributes:
        processor: the processor.
        path: where it is from, for messages.
        channels: 1 (grey) or 3 (colour).
    """

    processor: Any
    path: str
    channels: int

    @property
    def remedy(self) -> str:
        """What to do where pictures come out in several sizes."""
        return f"the image processor of '{self.path}' gives pictures of several sizes, so {_BY_HAND}"

    def decode(self, picture: Any) -> UInt8[np.ndarray, "c h w"]:
        """Turn one picture into bytes.

        Args:
            picture: a PIL image, an array of bytes [h, w] or [h, w, c], or a file that PIL can open.

        Returns:
            Its pixels, resized and cropped, but neither rescaled nor normalised.
        """
        return self._cut(opened(picture, self.channels))

    def check(self, normalisation: Normalisation) -> None:
        """See, on one picture, that bytes and normalisation give what the processor gives as a whole.

        Args:
            normalisation: what the processor does after resizing and cropping.

        Raises:
            SecateurError: they do not.
        """
        grid = np.add.outer(np.arange(48) * 5, np.arange(64) * 3)[..., None] + 40 * np.arange(self.channels)
        picture = opened(np.squeeze(grid % 256).astype(np.uint8), self.channels)
        try:
            cut, whole = (torch.as_tensor(np.array(p)) for p in (self._cut(picture), self._run(picture)))
            normal = normalisation(cut[None])[0]
            same = cut.dtype == torch.uint8 and torch.allclose(normal, whole.float(), rtol=1e-5, atol=1e-5)
            reason = "it does more than resize, crop, rescale and normalise"
        except Exception as error:  # processors of models that take other things raise errors of any kind
            same, reason = False, in_short(error)
        if not same:
            raise SecateurError(
                f"the image processor of '{self.path}' ({type(self.processor).__name__}) cannot prepare the "
                f"pictures ({reason}): {_BY_HAND}."
            )

    def _cut(self, picture: Any) -> np.ndarray:
        """Have the processor resize and crop a picture, and do no more."""
        return self._run(picture, do_rescale=False, do_normalize=False)

    def _run(self, picture: Any, **switches: bool) -> np.ndarray:
        """Call the processor on one picture."""
        return self.processor(picture, return_tensors="np", **switches)["pixel_values"][0]


def prepare(settings: Settings) -> Preparation:
    """Find out how a data source prepares its pictures.

    Args:
        settings: the data source.

    Returns:
        The preparation.

    Raises:
        SecateurError: settings contradict one another, or the processor cannot be used.
    """
    if settings.processor is None:
        pictures = Pictures(settings.size, settings.channels, settings.crop, settings.resampling)
        return Preparation(pictures, settings.normalisation)
    by_hand = {
        "size": settings.size is not None,
        "crop": settings.crop is not None,
        "resampling": settings.resampling != "bilinear",
        "normalisation": settings.normalisation != Normalisation(),
    }
    if any(by_hand.values()):
        given = " and ".join(name for name, is_given in by_hand.items() if is_given)
        raise SecateurError(
            f"the processor of '{settings.processor}' says how pictures are prepared: leave out {given}, or "
            "processor."
        )
    return read_processor(settings.processor, settings.channels)


def read_processor(path: str, channels: int = 3) -> Preparation:
    """Read how a model's own image processor prepares pictures.

    Args:
        path: a folder with preprocessor_config.json, or with the config.json of timm, or a name on the hub.
        channels: 1 (grey) or 3 (colour), where the processor does not say by the number of its means.

    Returns:
        The preparation; it gives what the processor gives, to rounding in float32.
    """
    if "pretrained_cfg" in (config := read_config(path)):
        return _of_timm(path, config["pretrained_cfg"])
    processor = load_processor(path)
    mean, std = (getattr(processor, name, None) for name in ("image_mean", "image_std"))
    factor = getattr(processor, "rescale_factor", None) if getattr(processor, "do_rescale", None) else None
    scales = getattr(processor, "do_normalize", None) and mean is not None and std is not None
    normalisation = Normalisation(
        1 / float(factor) if factor else 1.0,
        *((_numbers(mean), _numbers(std)) if scales else ()),
    )
    if isinstance(mean, list | tuple) and len(mean) in (1, 3):
        channels = len(mean)
    decoder = Processed(processor, path, channels)
    decoder.check(normalisation)
    return Preparation(decoder, normalisation, processor)


def timm_settings(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Turn timm's description of a model's pictures into settings of a data source.

    Args:
        config: its pretrained_cfg: input_size, mean, std, crop_pct, crop_mode, interpolation.
        origin: where it is from, for messages.

    Returns:
        size, crop, resampling, channels, and normalisation as a table.

    Raises:
        SecateurError: it lacks something, or prepares pictures in another way.
    """
    resampling = str(config.get("interpolation") or "bicubic")
    if config.get("crop_mode", "center") != "center" or resampling not in get_args(Resampling):
        raise SecateurError(
            f"the pictures of '{origin}' are prepared by crop_mode '{config.get('crop_mode', 'center')}' and "
            f"interpolation '{resampling}', which Secateur does not know: {_BY_HAND}."
        )
    try:
        channels, height, width = (int(n) for n in config["input_size"])
        mean, std = _numbers(config["mean"]), _numbers(config["std"])
        crop = float(config.get("crop_pct") or 0.875)
    except (KeyError, TypeError, ValueError) as error:
        raise SecateurError(
            f"the pretrained_cfg of '{origin}' does not give input_size, mean and std: {_BY_HAND}."
        ) from error
    return {
        "size": (height, width), "crop": crop, "resampling": resampling, "channels": channels,
        "normalisation": {"mean": mean, "std": std},
    }  # fmt: skip


def _of_timm(path: str, config: Any) -> Preparation:
    """Prepare pictures as timm does."""
    settings = timm_settings(config if isinstance(config, Mapping) else {}, path)
    normalisation = Normalisation(**settings.pop("normalisation"))
    return Preparation(Pictures(**settings), normalisation)


def _numbers(value: Any) -> tuple[float, ...]:
    """Give one number or several as a tuple."""
    return tuple(float(n) for n in value) if isinstance(value, list | tuple) else (float(value),)
