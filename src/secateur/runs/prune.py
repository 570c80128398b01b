"""Prune a network: the one function that Python users call, and that the command line calls."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import nn

from secateur.allocation import Global, Uniform
from secateur.core.allocation import Allocation
from secateur.core.budget import as_grouping
from secateur.core.errors import FULL, SecateurError
from secateur.core.limit import Limit
from secateur.core.sizes import parse_bytes
from secateur.core.task import INCOMPARABLE, Task
from secateur.pruners import ICBS, Network, Pruner, Recalibration, Refit, Session
from secateur.runs.drive import Drive, Listener
from secateur.runs.ending import Run
from secateur.runs.folder import RECIPE, RunFolder


def prune(
    model: nn.Module,
    task: Task,
    pruner: Pruner | None = None,
    *,
    density: float = 0.1,
    allocation: Allocation | None = None,
    grouping: str | None = None,
    budget: str | Limit | None = None,
    seed: int = 0,
    refit: Refit | None = None,
    recalibrate: bool = False,
    memory: str | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    out: str | Path | None = None,
    recipe: Mapping[str, Any] | None = None,
    resume: bool = False,
    save_model: bool = False,
    listeners: Sequence[Listener] = (),
    stop: Callable[[], bool] | None = None,
) -> Run:
    """Prune a trained network in place; on any failure the model is as it was before.

    Args:
        model: the network; its kept weights stay bit for bit what they are, unless the pruner
            or a refit updates them.
        task: data and loss.
        pruner: the method; `ICBS` by default.
        density: fraction of the prunable weights to keep, in (0, 1).
        allocation: how the density is spread over the layers; `Uniform` by default.
        grouping: ``"layer"``, ``"output"``, ``"input"`` or ``"global"``: within which groups the
            count of kept weights is fixed; per layer by default.
        budget: ``"60s"``, ``"10min"``, ``"500steps"``; by default until nothing improves. The
            seconds count from the first evaluation to the last; loading and compiling come before.
        seed: everything random follows from it.
        refit: what is done when the mask is found, to the kept weights or it; None: nothing, weights stay bit
            for bit what they were.
        recalibrate: estimate the running statistics of BatchNorm layers anew when the mask is found, before
            a refit, on calibration samples.
        memory: what the run may take on the model's device, such as ``"8GB"``, the model included; by default
            what there is.
        include: glob patterns for layers to prune; None: those that the task says, all linear layers as
            a rule.
        exclude: glob patterns for layers to leave alone.
        out: the run folder to write.
        recipe: the resolved recipe, written into the run folder.
        resume: go on with the run in `out`, whose settings must be the same.
        save_model: write the pruned checkpoint into the run folder.
        listeners: called with every event.
        stop: asked between steps whether to stop there, keeping the best mask so far.

    Returns:
        The run.

    Raises:
        SecateurError: the settings, the model or the data cannot be used, or the GPU's memory is full; the
            message says why.
    """
    _check(model, task, pruner, density, allocation, seed)
    if out is None and (resume or save_model):
        raise SecateurError(f"{'resume' if resume else 'save_model'} needs a run folder: give out=.")
    pruner = pruner or ICBS()
    allocation = allocation or Uniform()
    groups = as_grouping(grouping or ("global" if isinstance(allocation, Global) else "layer"))
    bound = None if memory is None else parse_bytes(memory)
    if not task.comparable and any(part.distils for part in (pruner, refit) if part is not None):
        raise SecateurError(INCOMPARABLE.format(type(task).__name__))
    network = Network.of(model, task, include, exclude)
    if refit is not None:
        refit.check(network, task)
    counts = allocation.budget(network.shapes, density, groups, network.kernels)
    limit = Limit.parse(budget)
    if limit == Limit():
        limit = pruner.default_limit
    identity = {
        "model": network.fingerprint(),
        "data set": _data_digest(task),
        "settings": f"{_settings(pruner)} density={density} {allocation!r} {groups} seed={seed} "
        f"samples={task.size('calibration')} {_settings(refit)}"
        + (" recalibrate" if recalibrate else "")
        + task.variation,
    }
    toml = tomli_w.dumps(dict(recipe)) if recipe is not None else None
    folder, before = None, None
    if out is not None:
        folder = RunFolder.open(out) if resume else RunFolder.create(out, toml)
        if resume and toml is not None:
            before = folder.read_text(RECIPE)
            folder.write_text(RECIPE, toml)  # the budget may be another
    session = Session(network, task, counts, seed, chunk=task.per_pass)
    drive = Drive(
        session,
        pruner,
        density,
        limit,
        folder,
        identity,
        tuple(listeners),
        stop or (lambda: False),
        refit,
        bound,
        Recalibration() if recalibrate else None,
    )
    try:
        with network.restored_on_failure(), _own_precision(network.device):
            return drive.run(save_model)
    except BaseException as error:
        if folder is not None and not resume:
            folder.discard_unless_begun()
        elif folder is not None and before is not None and isinstance(error, SecateurError):
            folder.write_text(RECIPE, before)  # what was refused must not be asked for again
        if isinstance(error, torch.OutOfMemoryError):
            raise SecateurError(FULL) from error
        raise


def _settings(part: Pruner | Refit | None) -> str:
    """Write all that decides a result, as in folders of runs that are older than temperatures."""
    return repr(part).replace(", temperature=None", "")


def _own_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Leave a surrounding autocast: it keeps casts of weights, which would not see that they change."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


def _check(model: Any, task: Any, pruner: Any, density: Any, allocation: Any, seed: Any) -> None:
    """Refuse arguments of the wrong kind, which would fail late and in other words."""
    wanted = (
        ("model", model, nn.Module, "a torch.nn.Module"),
        ("task", task, Task, "a Task, such as secateur.Classification.from_arrays(x, y)"),
        ("pruner", pruner, Pruner | None, "a pruner, such as secateur.ICBS()"),
        ("allocation", allocation, Allocation | None, "an allocation, such as secateur.allocation.ERK()"),
        ("density", density, Real, "a number"),
        ("seed", seed, Integral, "a whole number"),
    )
    for name, value, kind, words in wanted:
        if not isinstance(value, kind):
            raise SecateurError(f"{name} must be {words}, not {value!r:.80}.")
    if not 0 < density < 1:
        raise SecateurError(
            f"density is the fraction of weights to keep and must lie between 0 and 1, not {density}."
        )


def _data_digest(task: Task) -> str:
    """Digest a few calibration samples, to tell these data from others."""
    few = torch.arange(min(100, task.size("calibration")))
    batch = task.batch("calibration", few, torch.device("cpu"))
    digest = hashlib.blake2b(digest_size=16)
    for part in (batch.inputs, batch.targets):
        if isinstance(part, torch.Tensor):
            digest.update(part.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
