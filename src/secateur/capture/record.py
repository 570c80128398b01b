"""The capture: run a batch once and keep what the parts said they need. The only hooks."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from secateur.capture.hessian import hessian, hessian_product
from secateur.capture.inputs import inputs_of
from secateur.capture.layout import tape_of, weight_gradient
from secateur.core.errors import SecateurError
from secateur.core.inputs import Inputs
from secateur.core.layer import Layer, to_exclude, unreached
from secateur.core.modes import HALF, differentiable
from secateur.core.signal import Signal
from secateur.core.tape import Tape
from secateur.core.task import Batch, Task, check_losses

# What a layer was given each time it ran, and where its output is in autograd's graph.
_Uses = list[tuple[Inputs, GradientEdge | None]]

_TENSOR_FLOAT = 2.0**-10  # the precision of TensorFloat-32
_ROWS = (Signal.LOSS_ROWS, Signal.SAMPLED_ROWS, Signal.GAUSS_NEWTON_ROWS)


def capture(
    model: nn.Module,
    task: Task,
    batch: Batch,
    layers: Sequence[Layer],
    needs: frozenset[Signal],
    generator: torch.Generator,
    draws: int = 1,
    *,
    verify: bool = False,
) -> Tape:
    """Record one forward and the necessary backward passes of a batch for every layer.

    The layers' inputs and the gradients at their outputs are all that is taken; weight
    gradients are not formed by autograd unless it is to be compared with, `.grad` is not
    touched, and the model is in evaluation mode meanwhile. Half precision is recorded, and
    summed, in float32. If nothing but inputs is asked for, no backward pass is run, and the
    tape's gradients are NaN.

    Refused with a `SecateurError` are a layer that is never reached, is run without gradients,
    does not affect the loss, or has inputs whose first dimension does not count samples; and a
    loss that is NaN or infinite.

    Memory: the tape itself, which per sample has the inputs of each layer and its outputs times the number
    of rows (1, `draws`, or the number of classes), at all positions; patches of convolutions are not copied
    but for some samples at a time. Where a layer has fewer weights than that are numbers, there are
    the gradients of its weights instead, one a row. Before the tape has its inputs, autograd's graph has
    them, and one layer's are there twice at a time. Beside the graph there is one more gradient at the
    outputs of all layers.

    Args:
        model: the network.
        task: the loss.
        batch: the samples.
        layers: the layers to record.
        needs: what to record; at most one kind of rows.
        generator: where sampled labels come from, on the CPU.
        draws: labels drawn for each sample, where labels are sampled.
        verify: whether to check, by one more backward pass, that each layer's gradients follow
            from its records. They do not where its weight is used outside the layer, or where
            samples are not the first dimension.

    Returns:
        The tape.

    Raises:
        ValueError: needs has more than one kind of rows.
        SecateurError: a layer is one of a mixture's experts; or one of the reasons above.
    """
    for layer in layers:
        if layer.slot is not None:
            raise SecateurError(
                f"layer '{layer.name}' is one of a mixture's experts, which see positions of several samples "
                f"together, and no gradient of a single sample can be told: {to_exclude(layer.name)}"
            )
    kinds = [signal for signal in _ROWS if signal in needs]
    if len(kinds) > 1:
        raise ValueError(f"a tape has one kind of rows, not {len(kinds)}: {[kind.name for kind in kinds]}.")
    backward = verify or bool(needs - {Signal.INPUTS, Signal.MOMENTS})
    with differentiable(model, [layer.parameter for layer in layers], backward):
        with _recording(layers) as records:
            outputs = task.forward(model, batch)
        losses = task.losses(outputs, batch.targets)
        size = losses.numel()
        _check(losses, layers, records, batch.index)
        gradients: dict[str, Tensor] = {}
        rows: dict[str, list[list[Tensor]]] = {}  # of each layer, by draw, for every use
        if backward:
            kind = kinds[0] if kinds else None
            count, cotangents = _cotangents(kind, task, batch, outputs, generator, draws)
            found = _pull(losses.sum(), None, records, layers, retain=verify or count > 0)
            gradients = {
                n: weight_gradient(_inputs(uses), found[n], None, size) for n, uses in records.items()
            }
            if verify:
                _verify(losses, layers, records, found, retain=count > 0)
            if kind is Signal.LOSS_ROWS:
                rows = {name: [pieces] for name, pieces in found.items()}
            del found
            for r, cotangent in enumerate(cotangents):
                found = _pull(outputs, cotangent, records, layers, retain=r + 1 < count)
                for name in records:
                    rows.setdefault(name, []).append(found.pop(name))
    # Without outputs and edges, the graph goes, and what it keeps of the layers' inputs.
    losses = losses.detach()
    given = {name: _inputs(uses) for name, uses in records.items()}
    del outputs, records
    tapes = {}
    for layer in layers:
        gradient = gradients.get(layer.name)
        pieces = given.pop(layer.name), rows.pop(layer.name, [])
        tapes[layer.name] = tape_of(*pieces, gradient, layer.shape, size, moments=Signal.MOMENTS in needs)
        del pieces
    exact = Signal.HESSIAN in needs
    return Tape(
        tapes,
        losses,
        partial(hessian, model, task, batch, layers) if exact else None,
        partial(hessian_product, model, task, batch, layers) if exact else None,
    )


@contextlib.contextmanager
def _recording(layers: Sequence[Layer]) -> Iterator[dict[str, _Uses]]:
    """Hook the layers' modules for one forward pass: a backward pass may run modules again."""
    records: dict[str, _Uses] = {layer.name: [] for layer in layers}
    backward = torch.is_grad_enabled()

    def hook(
        name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        if backward and not output.requires_grad:
            raise SecateurError(
                f"layer '{name}' is run without gradients (torch.no_grad in the model's forward): "
                f"{to_exclude(name)}"
            )
        # An edge rather than the output itself, which ReLU(inplace=True) would overwrite.
        edge = get_gradient_edge(output) if backward else None
        records[name].append((inputs_of(name, module, args, kwargs, output), edge))

    handles = [
        module.register_forward_hook(partial(hook, layer.name), with_kwargs=True)
        for layer in layers
        for module in layer.modules
    ]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _pull(
    root: Tensor,
    cotangent: Tensor | None,
    records: dict[str, _Uses],
    layers: Sequence[Layer],
    retain: bool,
) -> dict[str, list[Tensor]]:
    """Differentiate with respect to the layers' outputs, for every use of each layer."""
    edges = [edge for uses in records.values() for _, edge in uses if edge is not None]
    if root.requires_grad:
        found = torch.autograd.grad(root, edges, cotangent, retain_graph=retain, allow_unused=True)
    else:
        found = (None,) * len(edges)
    gradients: dict[str, list[Tensor]] = {}
    left = iter(found)
    for layer in layers:
        pieces = [next(left) for _ in records[layer.name]]
        if all(piece is None for piece in pieces):
            raise SecateurError(f"layer '{layer.name}' does not affect the loss: {to_exclude(layer.name)}")
        # One use may come to nothing where another does not.
        gradients[layer.name] = [
            _nothing(x, layer.shape[0]) if piece is None else piece
            for piece, (x, _) in zip(pieces, records[layer.name], strict=True)
        ]
    return gradients


def _nothing(inputs: Inputs, outs: int) -> Tensor:
    """Give the gradient at the outputs of a use that nothing came of."""
    x, patches = inputs.tensor, inputs.patches
    if patches is None:
        return x.new_zeros((*x.shape[:-1], outs))
    return patches.apply(patches.padded(x), x.new_zeros(outs, 1).expand(outs, patches.width(x)))


def _cotangents(
    kind: Signal | None, task: Task, batch: Batch, outputs: Tensor, generator: torch.Generator, draws: int
) -> tuple[int, Iterator[Tensor]]:
    """Give the vectors at the outputs whose pullbacks are the rows of the curvature, and their number."""
    if kind is Signal.GAUSS_NEWTON_ROWS:
        factors = task.loss_hessian_factors(outputs.detach()).to(outputs.dtype)
        return len(factors), iter(factors)
    if kind is not Signal.SAMPLED_ROWS:
        return 0, iter(())

    def sampled() -> Iterator[Tensor]:
        leaf = outputs.detach().requires_grad_(True)
        for _ in range(draws):
            loss = task.losses(leaf, task.redraw(leaf.detach(), batch.targets, generator)).sum()
            # H = (1/S) sum_q G_q G_q', so that a draw out of R carries a factor 1/sqrt(R).
            yield torch.autograd.grad(loss, leaf)[0] / draws**0.5

    return draws, sampled()


def _inputs(uses: _Uses) -> list[Inputs]:
    """Give the inputs of all uses of a layer."""
    return [inputs for inputs, _ in uses]


def _verify(
    losses: Tensor,
    layers: Sequence[Layer],
    records: dict[str, _Uses],
    found: dict[str, list[Tensor]],
    retain: bool,
) -> None:
    """Compare the gradients that follow from the records with those of autograd."""
    size = losses.numel()
    # Unequal weights, for the plain mean would come out right even if samples were taken for
    # positions: it is a sum over both.
    weights = torch.linspace(0.5, 1.5, size, dtype=losses.dtype, device=losses.device)
    parameters = [layer.parameter for layer in layers]
    truths = torch.autograd.grad(
        (weights * losses).sum() / size, parameters, retain_graph=retain, allow_unused=True
    )
    for layer, truth in zip(layers, truths, strict=True):
        uses, pieces = records[layer.name], found[layer.name]
        inputs = _inputs(uses)
        ours = weight_gradient(inputs, pieces, weights, size).double()
        theirs = torch.zeros_like(ours) if truth is None else layer.view(truth).double()
        tensors = [x.tensor for x in inputs]
        dtypes = {layer.weight.dtype, *(x.dtype for x in tensors), *(piece.dtype for piece in pieces)}
        # Where the samples' gradients cancel, rounding is relative to them and not to their sum.
        d, x = _norm(pieces), _norm(tensors) * max(x.overlap for x in inputs) ** 0.5
        coarse = _is_coarse(layers) and torch.float32 in dtypes
        rounding = max(_TENSOR_FLOAT * coarse, *(torch.finfo(kind).eps for kind in dtypes)) * d * x / size
        error = float(torch.linalg.vector_norm(ours - theirs))
        if error > _tolerance(dtypes, coarse) * float(torch.linalg.vector_norm(theirs)) + rounding:
            raise SecateurError(
                f"the gradient of layer '{layer.name}' does not follow from its inputs and outputs (its "
                "weight is used outside the layer, or samples are not the first dimension): "
                f"{to_exclude(layer.name)}"
            )


def _norm(pieces: list[Tensor]) -> float:
    """Compute the Euclidean norm of several tensors together."""
    return sum(float(torch.linalg.vector_norm(piece, dtype=torch.float64)) ** 2 for piece in pieces) ** 0.5


def _is_coarse(layers: Sequence[Layer]) -> bool:
    """Say whether float32 is multiplied as TensorFloat-32, as by cuDNN in convolutions unless told not to."""
    kernels = any(layer.parameter.is_cuda and layer.parameter.dim() > 2 for layer in layers)
    return kernels or torch.get_float32_matmul_precision() != "highest"


def _tolerance(dtypes: set[torch.dtype], coarse: bool) -> float:
    """Give the relative error that rounding may leave in a gradient."""
    if dtypes & set(HALF):
        return 5e-2
    if torch.float32 not in dtypes:
        return 1e-6
    return 1e-2 if coarse else 1e-3


def _check(losses: Tensor, layers: Sequence[Layer], records: dict[str, _Uses], index: Tensor | None) -> None:
    """Refuse what would make every later number meaningless."""
    samples = losses.numel()
    for layer in layers:
        name = layer.name
        if not records[name]:
            raise SecateurError(unreached(layer))
        for inputs, _ in records[name]:
            x = inputs.tensor
            # Each sample may have several rows of the first dimension: its positions, frames or windows.
            if x.dim() < 2 or x.shape[0] % samples != 0:
                raise SecateurError(
                    f"layer '{name}' has inputs of the shape {list(x.shape)}, the first dimension of which "
                    f"does not count the {samples} samples (sequence first, for example): {to_exclude(name)}"
                )
    check_losses(losses, "calibration samples", index)
