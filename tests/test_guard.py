"""The guard: what samples that no batch contains decide."""

from dataclasses import dataclass

import pytest
import torch

from secateur import ICBS, Classification, LearnedMask, Mask, SecateurError, prune
from secateur.pruners import Batches, State
from secateur.pruners.guard import judged
from secateur.testing import networks


def held_state(guard=None, lowest=None):
    """Give a state with a best mask of its own."""
    mask = Mask({"a": torch.tensor([[True, False]])})
    found = {} if lowest is None else {"guard": torch.tensor(lowest, dtype=torch.float64)}
    return State(mask, mask, mask, guard=guard, best_guard=guard, lowest=found)


def test_the_guard_decides_by_one_standard_error():
    other = Mask({"a": torch.tensor([[False, True]])})
    lowest = [1.0, 2.0, 3.0, 4.0]
    # Worse by 0.1 on average, with a standard error of sqrt(0.0267) / 2 = 0.082: worse for sure.
    worse = torch.tensor([1.3, 2.1, 3.1, 3.9], dtype=torch.float64)
    assert judged(held_state(2.5, lowest), other, worse).best is not other
    # Worse by 0.1 on average, with a standard error of 0.7 / 2: nobody can tell, and the later is taken.
    unsure = torch.tensor([2.1, 1.3, 3.1, 3.9], dtype=torch.float64)
    after = judged(held_state(2.5, lowest), other, unsure)
    assert after.best is other
    assert after.best_guard == pytest.approx(2.6)
    assert after.lowest["guard"].tolist() == lowest  # the yardstick stays
    lower = judged(held_state(2.5, lowest), other, worse - 0.5)
    assert lower.best is other
    assert lower.lowest["guard"].tolist() == (worse - 0.5).tolist()


def test_before_anything_was_averaged_the_start_must_be_beaten():
    other = Mask({"a": torch.tensor([[False, True]])})
    high, low = torch.full((4,), 2.0), torch.full((4,), 0.5)
    assert judged(held_state(1.0), other, high).best is not other
    assert judged(held_state(1.0), other, low).best is other


@pytest.mark.parametrize(("loss", "rate"), [(1.04, 1.0), (1.06, 0.5), (0.5, 1.0)])
def test_a_stage_that_raised_the_guard_loss_halves_the_rate(loss, rate):
    state = held_state(1.0)
    assert judged(state, state.mask, torch.full((4,), loss)).rate_factor == rate


def test_a_high_guard_loss_that_may_be_chance_leaves_the_rate():
    lowest = [1.0, 2.0, 3.0, 4.0]
    unsure = torch.tensor([3.0, 1.2, 3.1, 4.0], dtype=torch.float64)  # 0.325 above, give or take 0.57
    assert judged(held_state(2.5, lowest), held_state().mask, unsure).rate_factor == 1.0
    sure = torch.tensor([1.3, 2.3, 3.4, 4.4], dtype=torch.float64)
    assert judged(held_state(2.5, lowest), held_state().mask, sure).rate_factor == 0.5


def test_without_a_guard_the_last_mask_is_the_best():
    other = Mask({"a": torch.tensor([[False, True]])})
    assert judged(held_state(1.0), other, None).best is other


def test_a_guard_sample_with_nan_is_refused():
    net = networks.mlp(samples=200)
    inputs, labels = torch.randn(200, 6, dtype=torch.float64), torch.randint(4, (200,))
    task = Poisoned(Classification.from_arrays(inputs, labels).samples)
    for pruner in (ICBS(), LearnedMask(), ICBS(share=0.0)):
        with pytest.raises(SecateurError, match="guard samples"):
            prune(net.model, task, pruner, density=0.5, budget="2steps")


@dataclass(frozen=True)
class Poisoned(Classification):
    """A task in which the first guard sample of seed 0 has no finite loss."""

    def batch(self, split, index, device):
        found = super().batch(split, index, device)
        _, guard = Batches().split(self.size("calibration"), 0)
        if split == "calibration":
            found.inputs[(index == guard[0]).nonzero()] = torch.nan
        return found

    def forward(self, model, batch):
        return model(batch.inputs)
