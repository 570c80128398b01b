"""The layer-wise refit: kept weights that reproduce the outputs of the trained network best."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.capture.replay import sequentially
from secateur.core.errors import SecateurError
from secateur.core.mask import Mask
from secateur.core.moments import Moments
from secateur.core.registry import register
from secateur.core.task import Task
from secateur.pruners.calibration import (
    calibration_samples,
    check_samples,
    gram_records,
    gram_room,
    state_bytes,
    write_layers,
)
from secateur.pruners.damping import check_damping, note_few, solvable
from secateur.pruners.network import Network
from secateur.pruners.refit import Refit
from secateur.pruners.session import Session

Target = Literal["network", "layer"]

_BYTES = 2**28  # of the systems that are solved together, and of their factors


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a layer that have the same inputs, and what they are to become.

    Attributes:
        name: the layer.
        matrix: H of its live inputs, in float64.
        target: the right-hand sides b: of each row w, w'H w / 2 - b.w is minimised.
        trained: the trained weights.
        kept: the weights that are kept.
        now: what the weights are, of which those that are pruned are not looked at.
    """

    name: str
    matrix: Float[Tensor, "i i"]
    target: Float[Tensor, "o i"]
    trained: Float[Tensor, "o i"]
    kept: Bool[Tensor, "o i"]
    now: Float[Tensor, "o i"]


@register("refit", "least-squares")
@dataclass(frozen=True)
class LeastSquares(Refit):
    """Least squares of each layer's output error, layer after layer.

    With the inputs x of a layer in the pruned network and x0 those in the trained one, sums over all
    positions H = sum x x' + d I and C = sum x0 x', d = damping * mean(diag sum x x'), the trained
    weights w0 and the set K of those that are kept, each row becomes the minimiser of

        sum (w.x - w0.x0)^2 + d |w - w0|^2  over w that are 0 outside K:   H_KK w_K = (C' w0 + d w0)_K

    so that a layer makes up for the errors of those before it (He, Zhang and Sun 2017, arXiv:1707.06168,
    for whole channels), and the damping draws the kept weights to the trained ones. The inputs x are those
    that the layers before give with their pruned and refitted weights. With target ``"layer"`` x stands for
    x0: what the layer would give with its trained weights, on inputs that are wrong already. Rows are
    solved together: in layers of up to `direct` inputs by Cholesky factors, in wider ones by conjugate
    gradients, of which every step is a product with H. The smaller layer errors need not make a smaller
    loss: where a mask was chosen by the loss itself, this refit can undo what it gained.

    Memory beyond the model: the hidden state of every calibration sample, H and C of layers with the same
    inputs, the new weights, and up to 256 MiB of systems, or four numbers in float64 for each weight of a
    layer that is solved by conjugate gradients. With target ``"network"`` also the hidden states of the
    trained network, what a pass gives those layers in it, and the weights of a decoder layer.

    Attributes:
        target: what a layer is to reproduce: ``"network"``, its outputs in the trained network;
            ``"layer"``, those of its trained weights on its present inputs, which takes half the passes. Of
            experts it is always the latter: they get other positions than in the trained network.
        damping: added to the diagonal, as a fraction of its mean.
        samples: calibration samples used; None: 128, or all there are.
        memory: bound on the Gram matrices that are held at a time, in GiB, though one is always.
        direct: inputs up to which systems are factored.
        iterations: steps of conjugate gradients at most.
        tolerance: residual at which a row is solved, relative to its right-hand side.

    Raises:
        SecateurError: a number out of range.
    """

    target: Target = "network"
    damping: float = 0.01
    samples: int | None = None
    memory: float = 8.0
    direct: int = 1024
    iterations: int = 300
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.target not in get_args(Target):
            raise SecateurError(
                f"target of the refit is one of {', '.join(get_args(Target))}, not '{self.target}'."
            )
        check_damping(self.damping)
        if self.samples is not None and self.samples < 1:
            raise SecateurError(f"samples must be at least 1, not {self.samples}.")
        if not self.memory > 0:
            raise SecateurError(f"memory must be greater than 0 GiB, not {self.memory}.")
        if self.direct < 0:
            raise SecateurError(f"direct must be at least 0 inputs, not {self.direct}.")
        if self.iterations < 1:
            raise SecateurError(f"iterations must be at least 1, not {self.iterations}.")
        if not self.tolerance > 0:
            raise SecateurError(f"tolerance must be greater than 0, not {self.tolerance}.")

    def check(self, network: Network, task: Task) -> None:
        """Refuse more samples than there are."""
        check_samples(task, self.samples)

    @property
    def share(self) -> float:
        """What part of a budget of seconds is held back for it: a tenth."""
        return 0.1

    @property
    def bytes_a_weight(self) -> float:
        """What it keeps for each prunable weight: mask, new value, and what stands aside meanwhile."""
        return 9.0 if self.target == "network" else 5.0

    def records(self, session: Session, *, least: bool) -> int:
        """Hidden states, Gram matrices, and systems in float64."""
        gram, states = gram_records(session, least), state_bytes(session, self.samples)
        return self._networks * (states + gram) + self._solving(session)

    def _solving(self, session: Session) -> int:
        """Bytes that solving takes beside the Gram matrices."""
        return max(2 * gram_records(session, True), _BYTES)

    @property
    def _networks(self) -> int:
        """How many have hidden states, and a matrix for each layer: the pruned one, and the trained one."""
        return 2 if self.target == "network" else 1

    def __call__(
        self, session: Session, mask: Mask, weights: Mapping[str, Tensor]
    ) -> tuple[Mask, dict[str, Tensor]]:
        """Refit one layer after the other, and write it to the model.

        Args:
            session: what to work with; where time runs out, the layers that are left keep their weights.
            mask: what is kept.
            weights: by layer, where they are not the reference weights any more.

        Returns:
            The mask, and the weights of the layers that were reached, 0 where pruned.
        """
        network = session.network
        index = calibration_samples(session, self.samples)
        groups = sequentially(
            network.model,
            session.task,
            list(session.passes(index)),
            network.layers,
            gram=True,
            limit=gram_room(session, self.memory, self.samples, self._networks, self._solving(session)),
            trained=network.trained if self.target == "network" else None,
        )
        masks, refitted = dict(mask), {}
        for group, moments in groups:
            if session.out_of_time(0.0):
                session.notice(
                    "the refit ran out of time before its last layer: the layers that are left keep the "
                    "weights they had; give more time or fewer samples."
                )
                break
            note_few(session, moments)
            for name in (layer.name for layer in group):
                now = weights.get(name, network.reference[name])
                masks[name], refitted[name] = self._refit(session, name, moments[name], mask[name], now)
            write_layers(group, refitted)
        return Mask(masks, mask.metadata), refitted

    def _refit(
        self,
        session: Session,
        name: str,
        moments: Moments,
        mask: Bool[Tensor, "o i"],
        weights: Float[Tensor, "o i"],
    ) -> tuple[Bool[Tensor, "o i"], Float[Tensor, "o i"]]:
        """Give a layer's mask and weights."""
        trained, mask, weights = session.network.reference[name], mask.clone(), weights.clone()
        for rows, sums in moments.by_group(len(trained)):
            gram, kept, now = sums.gram, mask[rows], weights[rows]
            assert gram is not None
            live = gram.diagonal() > 0  # weights of inputs that are always 0 can be anything
            if bool(live.any()):
                matrix = solvable(session, name, gram[live][:, live], self.damping)
                target = _target(sums, trained[rows], live, matrix)
                site = Rows(name, matrix, target, trained[rows][:, live], kept[:, live], now[:, live])
                kept[:, live], now[:, live] = self._fit(session, site)
        return mask, torch.where(mask, weights, 0)

    def _fit(self, session: Session, rows: Rows) -> tuple[Bool[Tensor, "o i"], Float[Tensor, "o i"]]:
        """Give the mask and the weights of rows that have the same inputs."""
        return rows.kept, self._solve(session, rows, rows.kept, rows.now.double()).to(rows.now.dtype)

    def _solve(
        self, session: Session, rows: Rows, kept: Bool[Tensor, "o i"], start: Float[Tensor, "o i"]
    ) -> Float[Tensor, "o i"]:
        """Solve the rows for what is kept, one way or the other."""
        if len(rows.matrix) <= self.direct:
            return solve_rows(rows.matrix, kept, rows.target)
        found, left = descend_rows(rows.matrix, kept, rows.target, start, self.iterations, self.tolerance)
        if left > self.tolerance:
            session.notice(
                f"the refit of layer '{rows.name}' ended after {self.iterations} iterations at a relative "
                f"residual of {left:.1g}: allow more iterations, or use more damping."
            )
        return found


def _target(sums: Moments, trained: Tensor, live: Tensor, matrix: Tensor) -> Float[Tensor, "o i"]:
    """Give the right-hand sides C' w0 + d w0 of the live inputs' equations, H w0 where there is no C."""
    weight = trained.double()
    if sums.cross is None:
        return weight[:, live] @ matrix
    assert sums.gram is not None
    damping = matrix.diagonal() - sums.gram.diagonal()[live]
    return weight @ sums.cross[:, live].double() + weight[:, live] * damping


def solve_rows(
    matrix: Float[Tensor, "i i"], kept: Bool[Tensor, "o i"], target: Float[Tensor, "o i"]
) -> Float[Tensor, "o i"]:
    """Minimise w'H w / 2 - b.w over the kept weights of each row, by Cholesky factors.

    Rows that keep about as many weights are solved together, each with its own system, which is filled up
    to the size of the largest with equations w = 0.

    Args:
        matrix: H, positive definite.
        kept: the weights that are kept.
        target: b.

    Returns:
        The weights, 0 where pruned.
    """
    found = torch.zeros_like(target)
    order = kept.sum(1).argsort(stable=True)
    # The positions that a row keeps, in front and ascending.
    places = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    while order.numel():
        most = int(kept[order[-1]].sum())
        if most == 0:
            break
        together = max(1, _BYTES // (2 * most * most * matrix.itemsize))
        rows, order = order[-together:], order[:-together]
        at = places[rows, :most]
        real = kept[rows].gather(1, at)
        system = matrix[at[:, :, None], at[:, None, :]].mul_(real[:, :, None]).mul_(real[:, None, :])
        system.diagonal(dim1=1, dim2=2).add_((~real).to(system.dtype))
        right = target[rows].gather(1, at) * real
        solution = torch.cholesky_solve(right[:, :, None], torch.linalg.cholesky(system))[:, :, 0]
        found[rows] = found[rows].scatter(1, at, solution * real)
    return found


def descend_rows(
    matrix: Float[Tensor, "i i"],
    kept: Bool[Tensor, "o i"],
    target: Float[Tensor, "o i"],
    start: Float[Tensor, "o i"],
    iterations: int,
    tolerance: float,
) -> tuple[Float[Tensor, "o i"], float]:
    """Minimise w'H w / 2 - b.w over the kept weights of each row, by conjugate gradients.

    They are preconditioned with the diagonal, and all rows share each product with H. The error of no row
    ever rises, so that what they are stopped at is no worse than the start.

    Args:
        matrix: H, positive definite.
        kept: the weights that are kept.
        target: b.
        start: where to start from.
        iterations: steps at most.
        tolerance: residual at which a row is solved, relative to its right-hand side.

    Returns:
        The weights, 0 where pruned, and the largest relative residual that is left.
    """
    weights = torch.where(kept, start, 0)
    residual = torch.where(kept, target - weights @ matrix, 0)
    scale = torch.where(kept, target, 0).norm(dim=1).clamp(min=torch.finfo(matrix.dtype).tiny)
    steep = residual / matrix.diagonal()
    direction, energy = steep, (residual * steep).sum(1)
    left = float((residual.norm(dim=1) / scale).max())
    for _ in range(iterations):
        if left <= tolerance:
            break
        product = torch.where(kept, direction @ matrix, 0)
        curvature = (direction * product).sum(1)
        # A row that is solved exactly stands still.
        step = torch.where(curvature > 0, energy / curvature, 0)[:, None]
        weights = weights + step * direction
        residual = residual - step * product
        steep = residual / matrix.diagonal()
        before, energy = energy, (residual * steep).sum(1)
        direction = steep + torch.where(before > 0, energy / before, 0)[:, None] * direction
        left = float((residual.norm(dim=1) / scale).max())
    return weights, left
