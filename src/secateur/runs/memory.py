"""How much memory a run will need, and how many samples a pass may take so that it is not more."""

import os
import resource
from dataclasses import dataclass

import torch

from secateur.capture import footprint
from secateur.core.errors import SecateurError
from secateur.core.sizes import in_words
from secateur.pruners import Pruner, Refit, Session

# What temporaries of a few layers take, and allocators do not give back at once.
_MARGIN = 1.1


@dataclass(frozen=True)
class Needs:
    """Bytes that a run will hold at the same time.

    Attributes:
        model: weights and buffers.
        reference: the copy of the trained weights that are pruned.
        pruner: what the pruner, or the refit where that takes more, keeps for each weight.
        passes: the larger of a pass with gradients and one without.
        records: records of layers, or Gram matrices; 0 where there are none.
        chunk: samples in a pass, at most.
    """

    model: int
    reference: int
    pruner: int
    passes: int
    records: int
    chunk: int

    @property
    def total(self) -> int:
        """All together."""
        return self.model + self.reference + self.pruner + self.passes + self.records

    @property
    def sentence(self) -> str:
        """Say what is needed and for what."""
        samples = "sample" if self.chunk == 1 else "samples"
        parts = [
            f"the model {in_words(self.model)}",
            f"its trained weights {in_words(self.reference)}",
            f"the pruner {in_words(self.pruner)}",
            f"passes of at most {self.chunk} {samples} {in_words(self.passes)}",
        ]
        if self.records:
            parts.append(f"records of layers {in_words(self.records)}")
        return f"the run will need about {in_words(self.total)}: {', '.join(parts)}."


def plan(session: Session, pruner: Pruner, refit: Refit | None, bound: int | None) -> Needs:
    """Foresee the memory of a run, and choose how many samples a pass takes.

    One sample is passed forward to see what it takes. With a bound, passes and the groups of layers that
    are recorded together are chosen so that it holds; without one they are as the task says, as far as the
    memory that is free allows.

    Args:
        session: what the pruner works with; its `chunk`, `positions`, `inputs` and `room` are
            set.
        pruner: the method.
        refit: what follows, if anything.
        bound: bytes, the model included.

    Returns:
        What will be needed.

    Raises:
        SecateurError: the bound, or by a fifth what is free, is too low for one sample a pass.
    """
    network, task = session.network, session.task
    found = footprint(network.model, task, session.batch(torch.tensor([0])), network.layers)
    session.positions, session.inputs = found.positions, found.inputs
    weights = list(network.reference.values())
    model = sum(t.numel() * t.element_size() for t in (*network.model.parameters(), *network.model.buffers()))
    reference = sum(w.numel() * w.element_size() for w in weights)
    parts = [pruner] if refit is None else [pruner, refit]
    kept = int(_MARGIN * max(part.bytes_a_weight for part in parts) * sum(w.numel() for w in weights))
    graded = max(part.gradient_samples(session) for part in parts)
    records = max(part.records(session, least=bound is not None) for part in parts)
    fixed = model + reference + kept + records
    # The trained network's outputs, their logarithmic softmax, and its products with the other.
    compared = 3 * found.outputs if any(part.distils for part in parts) else 0

    def passes(chunk: int) -> int:
        return int(_MARGIN * max(min(chunk, graded) * (found.graph + compared), chunk * found.forward))

    free = bound if bound is not None else free_bytes(network.device) + model + reference
    most = max(task.size("calibration"), task.size("evaluation"))
    chunk = min(most, session.chunk or most)
    while chunk > 1 and fixed + passes(chunk) > free:
        chunk = max(1, min(chunk - 1, chunk * 3 // 4))
    needs = Needs(model, reference, kept, passes(chunk), records, chunk)
    if needs.total > (1.2 * free if bound is None else bound):
        raise SecateurError(
            f"{in_words(free)} of memory are not enough: {needs.sentence} Give at least "
            f"--memory {in_words(1.01 * needs.total).replace(' ', '')}, smaller samples (context, size), or "
            "fewer layers (include)."
        )
    session.chunk = chunk
    if bound is not None:
        session.room = bound - (needs.total - records)
    return needs


def free_bytes(device: torch.device) -> int:
    """Say how much memory is free where a model is.

    Args:
        device: where.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = {name: int(rest.split()[0]) * 1024 for name, rest in (x.split(":") for x in lines)}
        return found["MemAvailable"]
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_bytes(device: torch.device) -> int:
    """Say how much memory has been in use at most: of the process, or allocated on the GPU.

    Args:
        device: where the model is.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # not what getrusage says, in which a process has what its parent had when it was begun
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
