"""Convolutions as linear layers over patches of their inputs."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from secateur.core.errors import SecateurError

# Numbers that a piece of unfolded patches may have: 32 Mi, 128 MB in float32.
CHUNK = 1 << 25

_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_APPLY: dict[int, Callable[..., Tensor]] = {
    1: nn.functional.conv1d,
    2: nn.functional.conv2d,
    3: nn.functional.conv3d,
}
_WEIGHTS: dict[int, Callable[..., Tensor]] = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}


def is_convolution(module: nn.Module) -> bool:
    """Say whether a module is a convolution with its kernels as `weight`.

    Args:
        module: the module.

    Returns:
        True for torch.nn.Conv1d, Conv2d and Conv3d; not for transposed ones.
    """
    return isinstance(module, _MODULES)


@dataclass(frozen=True)
class Patches:
    """How a convolution cuts its inputs into patches, one for each position of its outputs.

    With C channels in G groups, kernels of K points and the weight [O, C/G, *kernel] read as a matrix
    [O, C/G * K], the outputs of group g at position t are W_g P_g[:, t], with P_g[:, t] the C/G * K numbers
    of the group's channels under the kernel there. So what holds of a linear layer holds of each group, with
    patches as its inputs. Patches overlap: they are views of the padded inputs, and copied only where
    a product needs them, some samples at a time.

    Attributes:
        kernel: points in each dimension; likewise the next three.
        stride: steps from patch to patch.
        dilation: steps from point to point.
        padding: what is added before and behind.
        mode: with what: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        groups: G.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    mode: str = "zeros"
    groups: int = 1

    @classmethod
    def of(cls, module: nn.Module) -> "Patches | None":
        """Read the geometry of a module.

        Args:
            module: any.

        Returns:
            Its patches; None where it is no convolution.
        """
        if not isinstance(module, _MODULES):
            return None
        kernel, dilation = module.kernel_size, module.dilation
        if module.padding == "valid":
            padding = [(0, 0)] * len(kernel)
        elif module.padding == "same":
            total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            padding = [(n // 2, n - n // 2) for n in total]
        else:
            padding = [(int(n), int(n)) for n in module.padding]
        return cls(kernel, module.stride, dilation, tuple(padding), module.padding_mode, module.groups)

    def fitted(self, inputs: tuple[int, ...], outputs: tuple[int, ...], name: str) -> "Patches":
        """See that the patches are as many as the outputs; some modules pad by themselves.

        Args:
            inputs: sizes of the inputs' dimensions, channels left out.
            outputs: likewise of the outputs.
            name: the layer, for the message.

        Returns:
            The patches, with the padding that TensorFlow calls the same where the module adds that itself.

        Raises:
            SecateurError: what the module does to its inputs is not known.
        """
        if self._positions(inputs) == outputs:
            return self
        total = [
            max(0, (out - 1) * s + d * (k - 1) + 1 - n)
            for n, out, k, s, d in zip(inputs, outputs, self.kernel, self.stride, self.dilation, strict=True)
        ]
        ceiling = tuple(-(-n // s) for n, s in zip(inputs, self.stride, strict=True))
        if outputs != ceiling or any(n for pair in self.padding for n in pair):
            raise SecateurError(
                f"layer '{name}' makes outputs of {list(outputs)} from inputs of {list(inputs)}, not of "
                f"{list(self._positions(inputs))} as its settings say, so that its patches are not known: "
                f'exclude it, for example exclude = ["{name}"].'
            )
        return replace(self, padding=tuple((n // 2, n - n // 2) for n in total))

    def _positions(self, inputs: tuple[int, ...]) -> tuple[int, ...]:
        """Count the patches in each dimension."""
        return tuple(
            (n + before + behind - d * (k - 1) - 1) // s + 1
            for n, k, s, d, (before, behind) in zip(
                inputs, self.kernel, self.stride, self.dilation, self.padding, strict=True
            )
        )

    def padded(self, x: Float[Tensor, "n c *space"]) -> Float[Tensor, "n c *padded"]:
        """Add the padding.

        Args:
            x: what the convolution is given.

        Returns:
            What its patches are views of; the inputs themselves where there is no padding.
        """
        if not any(n for pair in self.padding for n in pair):
            return x
        around = [n for pair in reversed(self.padding) for n in pair]
        mode = "constant" if self.mode == "zeros" else self.mode
        return nn.functional.pad(x, around, mode=mode)

    def windows(self, x: Float[Tensor, "n c *padded"]) -> Float[Tensor, "n g each *rest"]:
        """View padded inputs as patches, without a copy.

        Args:
            x: what `padded` gave.

        Returns:
            [N, G, C/G, *kernel, *positions]; one number of the inputs may be in many places.
        """
        bare = replace(self, padding=((0, 0),) * len(self.kernel))
        n, channels, *space = x.shape
        sample, channel, *steps = x.stride()
        each = channels // self.groups
        shape = (n, self.groups, each, *self.kernel, *bare._positions(tuple(space)))
        strides = (
            sample,
            channel * each,
            channel,
            *(step * d for step, d in zip(steps, self.dilation, strict=True)),
            *(step * s for step, s in zip(steps, self.stride, strict=True)),
        )
        return x.as_strided(shape, strides)

    def features(
        self, x: Float[Tensor, "n c *padded"], group: Int[Tensor, " m"], column: Int[Tensor, " m"]
    ) -> Float[Tensor, "m n t"]:
        """Gather some numbers of all patches.

        Args:
            x: padded inputs.
            group: of which group.
            column: which of the C/G * K numbers of a patch.

        Returns:
            Each at every position of every sample.
        """
        windows = self.windows(x)
        places: list[Tensor] = []
        for size in reversed(self.kernel):
            places.insert(0, column % size)
            column = column // size
        dims = 3 + len(self.kernel)
        found = windows.movedim(0, dims - 1)[(group, column, *places)]
        return found.reshape(len(group), x.shape[0], -1)

    def apply(
        self, x: Float[Tensor, "n c *padded"], matrix: Float[Tensor, "o i"]
    ) -> Float[Tensor, "n o *space"]:
        """Convolve padded inputs with a matrix in the place of the weight.

        Args:
            x: padded inputs.
            matrix: [O, C/G * K].

        Returns:
            The outputs, without bias.
        """
        kernels = matrix.reshape(len(matrix), -1, *self.kernel).to(x.dtype)
        apply = _APPLY[len(self.kernel)]
        return apply(x, kernels, None, self.stride, 0, self.dilation, self.groups)

    def gradient(
        self, x: Float[Tensor, "n c *padded"], d: Float[Tensor, "n o *space"]
    ) -> Float[Tensor, "o i"]:
        """Sum over samples and positions the products of output gradients and patches.

        Args:
            x: padded inputs.
            d: gradients at the outputs.

        Returns:
            The gradient of the weight, as a matrix.
        """
        outs, size = d.shape[1], (d.shape[1], x.shape[1] // self.groups, *self.kernel)
        sums = _WEIGHTS[len(self.kernel)]
        return sums(x, size, d.to(x.dtype), self.stride, 0, self.dilation, self.groups).reshape(outs, -1)

    def sample_gradients(
        self, x: Float[Tensor, "n c *padded"], d: Float[Tensor, "n o *space"], samples: int
    ) -> Float[Tensor, "s o i"]:
        """Sum over the positions of each sample the products of output gradients and patches.

        Args:
            x: padded inputs; where there are more than samples, each sample has several in a row.
            d: gradients at the outputs.
            samples: S.

        Returns:
            The gradients of the weight. Meanwhile the patches are copied; where strides are 1 and there are
            more positions than channels, which makes that slow, the output gradients are.
        """
        outs, space = d.shape[1], d.shape[2:]
        if all(s == 1 for s in self.stride) and math.prod(space) > x.shape[1] // self.groups:
            return self._by_point(x, d).reshape(samples, -1, outs, self.width(x)).sum(1)
        patches = self._unfolded(x, samples)
        rows = d.reshape(samples, -1, self.groups, outs // self.groups, math.prod(space))
        rows = rows.permute(0, 2, 3, 1, 4).flatten(3)
        return (rows @ patches.mT).reshape(samples, outs, -1)

    def _by_point(self, x: Tensor, d: Tensor) -> Float[Tensor, "n g o c k"]:
        """Multiply the output gradients with the inputs under each point of the kernel, without unfolding.

        Of inputs laid out in one row, those under another point are the same row, shifted, where the outputs
        have room for as many numbers as the padded inputs.

        Returns:
            The gradients of the weight, the points of the kernel last.
        """
        n, channels, *space = x.shape
        _, outs, *positions = d.shape
        widen = [y for a, b in zip(space[:0:-1], positions[:0:-1], strict=True) for y in (0, a - b)]
        steps = [math.prod(space[at + 1 :]) for at in range(len(space))]
        length = 1 + sum((p - 1) * step for p, step in zip(positions, steps, strict=True))
        rows = nn.functional.pad(d, widen).reshape(n, self.groups, outs // self.groups, -1)[..., :length]
        flat = x.reshape(n, self.groups, channels // self.groups, -1)
        points = itertools.product(*(range(k) for k in self.kernel))
        found = x.new_empty(n, self.groups, outs // self.groups, flat.shape[2], math.prod(self.kernel))
        for at, point in enumerate(points):
            begin = sum(k * d * s for k, d, s in zip(point, self.dilation, steps, strict=True))
            found[..., at] = rows @ flat[..., begin : begin + length].mT
        return found

    def gram(self, x: Float[Tensor, "n c *padded"]) -> Float[Tensor, "g i i"]:
        """Sum the products of patches with themselves, some samples at a time.

        Args:
            x: padded inputs.

        Returns:
            P_g P_g' for each group, exactly symmetric.
        """
        total = self.cross(x, x)
        return (total + total.mT) / 2

    def cross(
        self, other: Float[Tensor, "n c *padded"], x: Float[Tensor, "n c *padded"]
    ) -> Float[Tensor, "g i i"]:
        """Sum the products of the patches of other inputs with those in the same places of these.

        Args:
            other: padded inputs.
            x: padded inputs of the same shape.

        Returns:
            Q_g P_g' for each group, with Q the patches of the others.
        """
        width = self.width(x)
        total = x.new_zeros(self.groups, width, width)
        size = max(1, CHUNK // self.unfolded_numbers(x))
        for first, second in zip(other.split(size), x.split(size), strict=True):
            patches = self._side_by_side(second)
            rows = patches if other is x else self._side_by_side(first)
            total.baddbmm_(rows, patches.mT)
        return total

    def sums(self, x: Float[Tensor, "n c *padded"]) -> Float[Tensor, "g i"]:
        """Sum all patches.

        Args:
            x: padded inputs.

        Returns:
            The sum for each group.
        """
        windows = self.windows(x)
        dims = len(self.kernel)
        return windows.sum((0, *range(3 + dims, 3 + 2 * dims))).flatten(1)

    def positions(self, x: Float[Tensor, "n c *padded"]) -> int:
        """Count the patches of all samples.

        Args:
            x: padded inputs.

        Returns:
            Their number.
        """
        dims = len(self.kernel)
        return x.shape[0] * math.prod(self.windows(x).shape[3 + dims :])

    def width(self, x: Float[Tensor, "n c *padded"]) -> int:
        """Count the numbers of a patch.

        Args:
            x: inputs.

        Returns:
            C/G * K.
        """
        return x.shape[1] // self.groups * math.prod(self.kernel)

    def unfolded_numbers(self, x: Float[Tensor, "n c *padded"]) -> int:
        """Count the numbers that the patches of one sample have when they are copied.

        Args:
            x: padded inputs.

        Returns:
            Their number.
        """
        return math.prod(self.windows(x).shape[1:])

    def _unfolded(self, x: Tensor, samples: int) -> Float[Tensor, "s g i t"]:
        """Copy the patches of some samples."""
        dims = len(self.kernel)
        windows = self.windows(x)
        windows = windows.unflatten(0, (samples, -1)).movedim(1, 3 + dims)
        return windows.flatten(3 + dims).flatten(2, -2)

    def _side_by_side(self, x: Tensor) -> Float[Tensor, "g i t"]:
        """Copy the patches of all samples into one matrix a group."""
        return self._unfolded(x, len(x)).movedim(0, 2).flatten(2)
