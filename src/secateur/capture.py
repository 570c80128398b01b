"""The capture: run a batch once and keep what the parts said they need. The only hooks."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from secateur.core.block import Block
from secateur.core.errors import SecateurError
from secateur.core.layer import Layer
from secateur.core.modes import evaluating
from secateur.core.signal import Signal
from secateur.core.tape import LayerTape, Tape
from secateur.core.task import Batch, Task

_ROWS = (Signal.LOSS_ROWS, Signal.SAMPLED_ROWS, Signal.GAUSS_NEWTON_ROWS)


def capture(
    model: nn.Module,
    task: Task,
    batch: Batch,
    layers: Sequence[Layer],
    needs: frozenset[Signal],
    generator: torch.Generator,
    draws: int = 1,
) -> Tape:
    """Record one forward and the necessary backward passes of a batch for every layer.

    The layers' inputs and the gradients at their outputs are all that is taken; weight
    gradients are never formed by autograd, `.grad` is not touched, and the model is in
    evaluation mode meanwhile. Memory: per sample and position, inputs plus outputs of each
    layer times the number of rows (1, `draws`, or the number of classes). A layer that is
    never reached, and a loss that is NaN or infinite, are refused with a `SecateurError`.

    Args:
        model: the network.
        task: the loss.
        batch: the samples.
        layers: the layers to record.
        needs: what to record; at most one kind of rows.
        generator: where sampled labels come from, on the CPU.
        draws: labels drawn for each sample, where labels are sampled.

    Returns:
        The tape.

    """
    with _recording(model, layers) as records:
        outputs = task.forward(model, batch)
        losses = task.losses(outputs, batch.targets)
        _check(losses, layers, records)
        edges = [[edge for _, edge in records[layer.name]] for layer in layers]
        flat = [edge for uses in edges for edge in uses]

        def pull(cotangents: Tensor | None, last: bool) -> list[Tensor]:
            """Pull output vectors (None: the loss itself) back to the layers' outputs."""
            root = losses.sum() if cotangents is None else outputs
            return _gradients(root, flat, cotangents, retain=not last)

        kind = next((signal for signal in _ROWS if signal in needs), None)
        cotangents = [] if kind is None else _cotangents(kind, task, outputs, generator, draws)
        loss_rows = pull(None, last=not cotangents)
        rows = [loss_rows] if kind is Signal.LOSS_ROWS else []
        rows += [pull(c, last=c is cotangents[-1]) for c in cotangents]
    size = losses.numel()
    tapes, at = {}, 0
    for layer, uses in zip(layers, edges, strict=True):
        span = slice(at, at + len(uses))
        at += len(uses)
        inputs = _feature_major([x for x, _ in records[layer.name]], size)
        gradient_rows = _feature_major(loss_rows[span], size)
        gradient = gradient_rows.flatten(1) @ inputs.flatten(1).T / size
        stacked = [_feature_major(r[span], size) if r is not loss_rows else gradient_rows for r in rows]
        tapes[layer.name] = LayerTape(inputs, gradient, torch.stack(stacked, 1) if stacked else None)
    exact = Signal.HESSIAN in needs
    return Tape(
        tapes,
        losses.detach(),
        partial(_hessian, model, task, batch, layers) if exact else None,
        partial(_hessian_product, model, task, batch, layers) if exact else None,
    )


@contextlib.contextmanager
def _recording(
    model: nn.Module, layers: Sequence[Layer]
) -> Iterator[dict[str, list[tuple[Tensor, GradientEdge]]]]:
    """Hook the layers' modules; leave the model as it was, whatever happens."""
    records: dict[str, list[tuple[Tensor, GradientEdge]]] = {layer.name: [] for layer in layers}

    def hook(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # An edge rather than the output itself, which ReLU(inplace=True) would overwrite.
        records[name].append((args[0].detach(), get_gradient_edge(output)))

    frozen = [layer.weight for layer in layers if not layer.weight.requires_grad]
    handles = [
        module.register_forward_hook(partial(hook, layer.name))
        for layer in layers
        for module in layer.modules
    ]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            yield records
    finally:
        for handle in handles:
            handle.remove()
        for weight in frozen:
            weight.requires_grad_(False)


def _gradients(
    root: Tensor, edges: list[GradientEdge], cotangents: Tensor | None, retain: bool
) -> list[Tensor]:
    """Differentiate with respect to the layers' outputs."""
    found = torch.autograd.grad(root, edges, cotangents, retain_graph=retain, allow_unused=False)
    return list(found)


def _cotangents(
    kind: Signal, task: Task, outputs: Tensor, generator: torch.Generator, draws: int
) -> list[Tensor]:
    """Give the vectors at the outputs whose pullbacks are the rows of the curvature."""
    # H = (1/S) sum_q G_q G_q', so that a draw out of R carries a factor 1/sqrt(R).
    if kind is Signal.GAUSS_NEWTON_ROWS:
        return list(task.loss_hessian_factors(outputs.detach()))
    if kind is Signal.LOSS_ROWS:
        return []
    leaf = outputs.detach().requires_grad_(True)
    found = []
    for _ in range(draws):
        loss = task.losses(leaf, task.sample_targets(leaf.detach(), generator)).sum()
        found.append(torch.autograd.grad(loss, leaf)[0] / draws**0.5)
    return found


def _feature_major(pieces: list[Tensor], samples: int) -> Float[Tensor, "f s t"]:
    """Lay records [S, ..., features] of all uses of a layer out as [features, S, positions]."""
    shaped = [p.detach().reshape(samples, -1, p.shape[-1]) for p in pieces]
    joined = shaped[0] if len(shaped) == 1 else torch.cat(shaped, 1)
    return joined.permute(2, 0, 1).contiguous()


def _check(
    losses: Tensor, layers: Sequence[Layer], records: dict[str, list[tuple[Tensor, GradientEdge]]]
) -> None:
    """Refuse what would make every later number meaningless."""
    for layer in layers:
        if not records[layer.name]:
            raise SecateurError(
                f"layer '{layer.name}' is never reached by the data: exclude it, for example "
                f'exclude = ["{layer.name}"].'
            )
    if not torch.isfinite(losses).all():
        bad = int((~torch.isfinite(losses)).sum())
        raise SecateurError(
            f"the loss is NaN or infinite for {bad} of {losses.numel()} calibration samples: "
            "check the inputs and their normalisation, and the weights."
        )


def _mean_loss(model: nn.Module, task: Task, batch: Batch, weights: dict[str, Tensor]) -> Float[Tensor, ""]:
    """Compute the mean loss as a function of some of the weights."""
    outputs = torch.func.functional_call(_Forward(model, task, batch), weights, ())
    return task.losses(outputs, batch.targets).mean()


class _Forward(nn.Module):
    """The task's forward pass as a module, so that its weights can be replaced by a call."""

    def __init__(self, model: nn.Module, task: Task, batch: Batch) -> None:
        super().__init__()
        self.model, self._task, self._batch = model, task, batch

    def forward(self) -> Tensor:
        """Run the model on the batch."""
        return self._task.forward(self.model, self._batch)


def _hessian(
    model: nn.Module, task: Task, batch: Batch, layers: Sequence[Layer], block: Block
) -> Float[Tensor, "n n"]:
    """Differentiate the mean loss over a block twice, by double backward."""
    keys = {layer.name: f"model.{layer.parameter_name}" for layer in layers}
    weights = {layer.name: layer.weight.detach() for layer in layers if layer.name in block.indices}

    def loss(values: Tensor) -> Tensor:
        replaced = {}
        for name, piece in block.split(values).items():
            flat = weights[name].reshape(-1).index_put((block.indices[name],), piece)
            replaced[keys[name]] = flat.reshape(weights[name].shape)
        return _mean_loss(model, task, batch, replaced)

    values = block.gather(weights).requires_grad_(True)
    with evaluating(model), torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(values), values, create_graph=True)
        eye = torch.eye(values.numel(), dtype=values.dtype, device=values.device)
        rows = [
            torch.autograd.grad(gradient, values, piece, retain_graph=True, is_grads_batched=True)[0]
            for piece in eye.split(64)
        ]
    matrix = torch.cat(rows)
    return (matrix + matrix.T) / 2


def _hessian_product(
    model: nn.Module, task: Task, batch: Batch, layers: Sequence[Layer], displacement: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Multiply the Hessian of the mean loss with a displacement of the weights."""
    keys = {layer.name: f"model.{layer.parameter_name}" for layer in layers}
    weights = {layer.name: layer.weight.detach().clone().requires_grad_(True) for layer in layers}
    with evaluating(model), torch.enable_grad():
        loss = _mean_loss(model, task, batch, {keys[name]: w for name, w in weights.items()})
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        along = torch.stack(
            [
                (g * displacement[name]).sum()
                for name, g in zip(weights, gradients, strict=True)
                if name in displacement
            ]
        ).sum()
        products = torch.autograd.grad(along, list(weights.values()), materialize_grads=True)
    return {name: p.detach() for name, p in zip(weights, products, strict=True)}
