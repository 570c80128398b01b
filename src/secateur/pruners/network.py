"""The network under the shears: reference weights, and the only place that writes weights."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.errors import SecateurError
from secateur.core.layer import Layer, find_layers
from secateur.core.mask import Mask
from secateur.core.task import Task
from secateur.core.trained import Trained


class Network:
    """A model, its prunable layers, and a copy of their trained weights.

    Memory beyond the model: one copy of the prunable weights.

    Attributes:
        model: the network.
        layers: its prunable layers.
        reference: the trained weights by layer.
        norms: its BatchNorm layers that keep running statistics, by name; frozen ones of other types (as
            detection models of transformers have) are none.
        trained_statistics: their running means and variances as they were trained, as in the state_dict.
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
            SecateurError: a pattern matches nothing; weights are NaN or infinite.
        """
        self.model = model
        self.layers: tuple[Layer, ...] = find_layers(model, include, exclude)
        self.reference: dict[str, Tensor] = {}
        for layer in self.layers:
            weight = layer.weight.detach()
            if not torch.isfinite(weight).all():
                raise SecateurError(
                    f"layer '{layer.name}' has NaN or infinite weights: start from a sound checkpoint."
                )
            self.reference[layer.name] = weight.clone(memory_format=torch.contiguous_format)
        self.norms: dict[str, _BatchNorm] = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm)
            and module.running_mean is not None
            and module.running_var is not None
        }
        self.trained_statistics = {key: values.clone() for key, values in self.statistics.items()}
        self._counts = {name: count.clone() for name, count in self._batches_tracked.items()}

    @classmethod
    def of(
        cls, model: nn.Module, task: Task, include: Sequence[str] | None, exclude: Sequence[str] = ()
    ) -> "Network":
        """Take those layers that the user, or else the task, says; refuse a model that the task does not fit.

        Args:
            model: the network.
            task: what it is for.
            include: glob patterns for layers to prune; None: as the task says.
            exclude: glob patterns for layers to leave alone.

        Returns:
            The network.
        """
        task.check(model)
        return cls(model, task.prunable(model) if include is None else include, exclude)

    @property
    def is_single(self) -> bool:
        """Whether all weights that are pruned are in float32."""
        return all(weight.dtype == torch.float32 for weight in self.reference.values())

    def check_bfloat16(self, bfloat16: bool | None) -> None:
        """Refuse matrices in bfloat16 where the weights are not wider.

        Args:
            bfloat16: whether products are asked for in it; None: nobody said.

        Raises:
            SecateurError: they are, and weights are not in float32.
        """
        if bfloat16 and not self.is_single:
            raise SecateurError("bfloat16 = true is for weights in float32: leave it out for this model.")

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of each layer."""
        return {layer.name: layer.shape for layer in self.layers}

    @property
    def kernels(self) -> dict[str, tuple[int, ...]]:
        """Extents of the kernels of those layers that are convolutions."""
        return {layer.name: layer.kernel for layer in self.layers if layer.kernel}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.layers[0].weight.device

    @property
    def trained(self) -> Trained:
        """The trained weights and statistics, to be written for a while."""
        held = self.statistics
        return Trained(self.reference, [(held[key], was) for key, was in self.trained_statistics.items()])

    @property
    def statistics(self) -> dict[str, Tensor]:
        """Running means and variances as they are now, the model's own, by their names in the state_dict."""
        return {
            f"{name}.{key}" if name else key: getattr(norm, key)
            for name, norm in self.norms.items()
            for key in ("running_mean", "running_var")
        }

    @property
    def _batches_tracked(self) -> dict[str, Tensor]:
        """How many batches each running mean is of, as training mode counts them."""
        counts = {name: norm.num_batches_tracked for name, norm in self.norms.items()}
        return {name: count for name, count in counts.items() if count is not None}

    def has_trained_statistics(self) -> bool:
        """Say whether running statistics are those that the network was given with, bit for bit.

        Returns:
            True where means, variances and counts of batches are.
        """
        trained, counts = self.trained_statistics, self._counts
        return all(torch.equal(values, trained[key]) for key, values in self.statistics.items()) and all(
            torch.equal(count, counts[name]) for name, count in self._batches_tracked.items()
        )

    def other_weights(self) -> dict[str, int]:
        """Size up the matrices and kernels of the model that are in no prunable layer.

        Returns:
            How many weights each has, by name; vectors (biases, norms) are not counted.
        """
        ours = {id(layer.parameter) for layer in self.layers}
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

    def displacement(self, mask: Mask) -> Callable[[str], Tensor]:
        """Say how far mask * reference is from the reference.

        Args:
            mask: what is kept.

        Returns:
            Layer -> the difference, [out, in].
        """
        return lambda name: torch.where(mask[name], 0, -self.reference[name])

    @torch.no_grad()
    def write(self, mask: Mask, weights: Mapping[str, Tensor] | None = None) -> None:
        """Set the model's weights to mask * reference, bit for bit where kept.

        Args:
            mask: what is kept.
            weights: by layer, to be used instead of the reference where they are.
        """
        for layer in self.layers:
            weight = (weights or {}).get(layer.name, self.reference[layer.name])
            layer.write(torch.where(mask[layer.name], weight, 0))

    @torch.no_grad()
    def restore_statistics(self) -> None:
        """Put running means, variances and counts of BatchNorm layers back as they were trained."""
        for key, values in self.statistics.items():
            values.copy_(self.trained_statistics[key])
        for name, count in self._batches_tracked.items():
            count.copy_(self._counts[name])

    def holds(self, mask: Mask, weights: Mapping[str, Tensor] | None = None) -> bool:
        """Say whether every module computes with mask * reference, bit for bit.

        Args:
            mask: what should be kept.
            weights: by layer, that stand in the place of the reference.

        Returns:
            True where they do.
        """
        return all(
            torch.equal(
                layer.view(getattr(module, layer.key).detach()),
                torch.where(mask[layer.name], (weights or {}).get(layer.name, self.reference[layer.name]), 0),
            )
            for layer in self.layers
            for module in layer.modules
        )

    @contextlib.contextmanager
    def restored_on_failure(self) -> Iterator[None]:
        """Put the trained weights and statistics back if anything is raised inside.

        Yields:
            Nothing.
        """
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for layer in self.layers:  # without a mask: there may be no memory left for one
                    layer.write(self.reference[layer.name])
            self.restore_statistics()
            raise

    def fingerprint(self) -> str:
        """Digest names, shapes, trained weights and statistics, to tell this model from another.

        Returns:
            A hexadecimal digest.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name, weight in (*self.reference.items(), *self.trained_statistics.items()):
            digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
            digest.update(weight.contiguous().cpu().view(torch.uint8).numpy().data)
        return digest.hexdigest()
