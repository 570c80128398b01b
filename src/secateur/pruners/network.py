"""The network under the shears: reference weights, and the only place that writes weights."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.layer import Layer, find_layers
from secateur.core.mask import Mask


class Network:
    """A model, its prunable layers, and a copy of their trained weights.

    Memory beyond the model: one copy of the prunable weights.

    Attributes:
        model: the network.
        layers: its prunable layers.
        reference: the trained weights by layer.
    """

    def __init__(
        self, model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
    ) -> None:
        """Find the layers, check their weights, and copy them.

        Args:
            model: the network.
            include: glob patterns for layers to prune.
            exclude: glob patterns for layers to leave alone.

        Raises:
            SecateurError: a pattern matches nothing; weights are NaN, infinite, or in half
                precision on the CPU.
        """
        self.model = model
        self.layers: tuple[Layer, ...] = find_layers(model, include, exclude)
        self.reference: dict[str, Tensor] = {}
        for layer in self.layers:
            weight = layer.weight.detach()
            if weight.device.type == "cpu" and weight.dtype in (torch.float16, torch.bfloat16):
                raise SecateurError(
                    f"layer '{layer.name}' is in {str(weight.dtype).removeprefix('torch.')}, which is too "
                    "coarse and slow on the CPU: convert the model first with model.float()."
                )
            if not torch.isfinite(weight).all():
                raise SecateurError(
                    f"layer '{layer.name}' has NaN or infinite weights: start from a sound checkpoint."
                )
            self.reference[layer.name] = weight.clone()

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of each layer."""
        return {layer.name: layer.shape for layer in self.layers}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.layers[0].weight.device

    def other_weights(self) -> dict[str, int]:
        """Size up the matrices and kernels of the model that are in no prunable layer.

        Returns:
            How many weights each has, by name; vectors (biases, norms) are not counted.
        """
        ours = {id(layer.weight) for layer in self.layers}
        return {
            name: parameter.numel()
            for name, parameter in self.model.named_parameters()
            if parameter.dim() > 1 and id(parameter) not in ours
        }

    def dense_mask(self) -> Mask:
        """Make the mask that keeps everything.

        Returns:
            The mask.
        """
        return Mask({n: torch.ones_like(w, dtype=torch.bool) for n, w in self.reference.items()})

    @torch.no_grad()
    def write(self, mask: Mask) -> None:
        """Set the model's weights to mask * reference, bit for bit where kept.

        Args:
            mask: what is kept.
        """
        for layer in self.layers:
            weight = self.reference[layer.name]
            layer.weight.copy_(torch.where(mask[layer.name], weight, 0))

    def holds(self, mask: Mask) -> bool:
        """Say whether every module computes with mask * reference, bit for bit.

        Args:
            mask: what should be kept.

        Returns:
            True where they do.
        """
        return all(
            torch.equal(module.weight.detach(), self.reference[layer.name] * mask[layer.name])
            for layer in self.layers
            for module in layer.modules
        )

    @contextlib.contextmanager
    def restored_on_failure(self) -> Iterator[None]:
        """Put the trained weights back if anything is raised inside.

        Yields:
            Nothing.
        """
        try:
            yield
        except BaseException:
            self.write(self.dense_mask())
            raise

    def fingerprint(self) -> str:
        """Digest names, shapes and trained weights, to tell this model from another.

        Returns:
            A hexadecimal digest.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name, weight in self.reference.items():
            digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(weight.contiguous().cpu().view(torch.uint8).numpy().data)
        return digest.hexdigest()
