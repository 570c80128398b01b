"""Variants of pictures: what they are, where they are drawn, and where not."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateur import ICBS, Classification, GradientSteps, SecateurError, Successive, prune
from secateur.allocation import Uniform
from secateur.cli.app import run
from secateur.core.device import has_fast_bfloat16
from secateur.core.seeds import generator
from secateur.core.task import Batch
from secateur.models import CNN
from secateur.pruners import Averaging, Batches, Network, Session
from secateur.recipes import load, prepare
from secateur.tasks import Arrays, Augmentation, HuggingFace, Images

CPU = torch.device("cpu")
PRUNER = ICBS(averaging=Averaging(length=3, samples=8))
# Without a guard the last mask is the result, whatever it is worth.
LAST = replace(PRUNER, batches=Batches(guard=0))


@pytest.fixture(autouse=True)
def one_thread():
    """Compute on one thread: in networks so small, several wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(samples=40, shape=(3, 8, 6), dtype=torch.float32):
    """Draw pictures of four classes, which differ in the mean of a quarter."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(samples, *shape, generator=draw, dtype=torch.float64)
    labels = torch.arange(samples) % 4
    x[..., : shape[-1] // 2] += 0.3 * labels.reshape(-1, *[1] * len(shape))
    return x.to(dtype), labels


def task_of(dtype=torch.float32, samples=40) -> Classification:
    return Classification.from_arrays(*pictures(samples, dtype=dtype))


def network(dtype=torch.float32) -> nn.Module:
    return CNN(channels=3, widths=(6, 8), classes=4, depthwise=False).build().to(dtype).eval()


def session_of(task, model=None, **more) -> Session:
    net = Network(network() if model is None else model)
    return Session(net, task, Uniform().budget(net.shapes, 0.5, "layer"), 0, **more)


def moved(x, offsets, mirrored):
    """Mirror one picture [c, *sides] and move it, pixel by pixel."""
    out = torch.zeros_like(x)
    for place in np.ndindex(*x.shape[1:]):
        begin = list(place)
        if mirrored:
            begin[-1] = x.shape[-1] - 1 - begin[-1]
        source = [at + offset for at, offset in zip(begin, offsets, strict=True)]
        if all(0 <= at < side for at, side in zip(source, x.shape[1:], strict=True)):
            out[(slice(None), *place)] = x[(slice(None), *source)]
    return out


# What a variant is.


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 1), (True, 2)])
@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 7), (1, 3, 4, 3)], ids=["pictures", "lines", "volumes"])
def test_every_variant_is_one_of_those_written_out(flip, shift, shape):
    x, _ = pictures(60, shape)
    found = Augmentation(flip, shift)(x, torch.Generator().manual_seed(1))
    seen = set()
    for before, after in zip(x, found, strict=True):
        ways = [
            (tuple(at - shift for at in offsets), mirrored)
            for offsets in np.ndindex(*[2 * shift + 1] * (len(shape) - 1))
            for mirrored in ((False, True) if flip else (False,))
        ]
        way = [way for way in ways if torch.equal(moved(before, *way), after)]
        assert len(way) == 1
        seen.add(way[0])
    mirrored = {mirrored for _, mirrored in seen}
    assert mirrored == ({False, True} if flip else {False})
    for axis in range(len(shape) - 1):  # each shift comes up along each axis
        assert {offsets[axis] for offsets, _ in seen} == set(range(-shift, shift + 1))


def test_shifts_and_flips_are_uniform():
    ramp = torch.arange(1.0, 10.0).expand(6000, 1, 9)
    middle = Augmentation(True, 1)(ramp, torch.Generator().manual_seed(0))[:, 0, 3]
    for value in (3, 4, 5, 6, 7, 8):  # 4, or mirrored 6, each one more or less
        share = float((middle == value).double().mean())
        expected = {3: 1, 4: 1, 5: 2, 6: 1, 7: 1, 8: 0}[value] / 6
        assert share == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("kind", [torch.uint8, torch.bfloat16, torch.float64])
def test_pictures_keep_their_type_and_are_not_changed_in_place(kind):
    x = (10 * pictures()[0]).to(kind)
    before = x.clone()
    found = Augmentation(True, 2)(x, torch.Generator().manual_seed(0))
    assert found.dtype == kind
    assert torch.equal(x, before)
    assert not torch.equal(found, x)


def test_without_flip_and_shift_nothing_is_done():
    x, _ = pictures()
    assert Augmentation()(x, torch.Generator()) is x
    assert not Augmentation().varies
    assert not task_of().variation
    batch = task_of().batch("calibration", torch.arange(3), CPU)
    assert torch.equal(task_of().varied(batch, torch.Generator()).inputs, batch.inputs)


def test_a_shift_is_a_whole_number_from_zero():
    with pytest.raises(SecateurError, match="a whole number from 0, not -1"):
        Augmentation(shift=-1)


def test_inputs_that_are_no_pictures_and_shifts_out_of_them_are_refused():
    rows = Classification.from_arrays(torch.randn(40, 6), torch.arange(40) % 4)
    with pytest.raises(SecateurError, match=r"for pictures .* the arrays given have the shape \[32, 6\]"):
        rows.augmented(flip=True)
    with pytest.raises(SecateurError, match=r"shift of 6 pixels .* must be below 6"):
        task_of().augmented(shift=6)
    with pytest.raises(SecateurError, match=r"for pictures .* the batch have the shape \[3, 6\]"):
        Augmentation(True)(torch.zeros(3, 6), torch.Generator())
    assert rows.augmented() is not rows  # of nothing to vary, nothing is asked


# The task.


def test_the_task_keeps_its_variants_and_the_original_has_none():
    plain = task_of()
    task = plain.augmented(flip=True, shift=2)
    assert (plain.variation, task.variation) == ("", "Augmentation(flip=True, shift=2)")
    named = Classification.from_arrays(*pictures())
    object.__setattr__(named.samples, "class_names", ("a", "b", "c", "d"))
    matched = named.augmented(shift=1).matched({0: "d", 1: "c", 2: "b", 3: "a"})
    assert matched.remarks
    assert matched.variation == "Augmentation(flip=False, shift=1)"
    index = torch.arange(5)
    batch = task.batch("calibration", index, CPU)
    assert torch.equal(batch.inputs, plain.batch("calibration", index, CPU).inputs)
    varied = task.varied(Batch(batch.inputs, batch.targets, index), torch.Generator().manual_seed(0))
    assert torch.equal(varied.targets, batch.targets)
    assert varied.index is index


# The session.


def test_a_number_stands_for_a_draw():
    session = session_of(task_of().augmented(flip=True, shift=2))
    index = torch.arange(12)

    def drawn(*variant):
        return torch.cat([batch.inputs for batch in session.passes(index, *variant)])

    plain = session.batch(index).inputs
    assert torch.equal(drawn(), plain)
    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    assert not torch.equal(drawn(3), plain)
    by_hand = session.task.varied(session.batch(index), generator(0, "variant", 3))
    assert torch.equal(drawn(3), by_hand.inputs)
    session.chunk = 5
    assert torch.equal(drawn(3), by_hand.inputs)
    session.seed = 1
    assert not torch.equal(drawn(3), by_hand.inputs)


@pytest.mark.parametrize("chunk", [1, 5])
def test_gradients_do_not_depend_on_the_passes(chunk):
    task = task_of(torch.float64).augmented(flip=True, shift=2)
    whole, parts = (session_of(task, network(torch.float64), chunk=c) for c in (None, chunk))
    index = torch.arange(12)
    loss, gradients = whole.gradient(index, variant=7)
    other, found = parts.gradient(index, variant=7)
    assert other == pytest.approx(loss, rel=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    assert whole.gradient(index)[0] != loss


@pytest.mark.parametrize("refit", [None, GradientSteps(steps=4, samples=8)], ids=["mask", "refit"])
def test_mini_batches_alone_are_varied(refit, monkeypatch):
    seen, original = [], Classification.varied

    def noted(self, batch, draw):
        seen.append(batch.index)
        return original(self, batch, draw)

    monkeypatch.setattr(Classification, "varied", noted)
    task = task_of(samples=60).augmented(flip=True, shift=2)
    session = session_of(task)
    pool, guard = session.divided(PRUNER.batches)
    session.losses(guard)
    session.guard_loss(guard)
    session.gradient(pool)
    assert not seen
    prune(network(), task, PRUNER, density=0.5, budget="2steps", refit=refit)
    assert len(seen) == 2 * 3 + (0 if refit is None else 4)
    assert set(torch.cat(seen).tolist()) <= set(pool.tolist())


def test_variants_change_the_mask_and_no_evaluation_of_the_same_weights():
    tasks = task_of(samples=60), task_of(samples=60).augmented(flip=True, shift=2)
    plain, varied = (prune(network(), task, LAST, density=0.5, budget="2steps") for task in tasks)
    for stage in ("dense", "start"):
        assert plain.report["evaluation"][stage] == varied.report["evaluation"][stage]
    assert not varied.mask.same_as(plain.mask)


def test_passes_of_a_refit_over_variants_are_not_bounded_by_default():
    for task, many in ((task_of(), 80), (task_of().augmented(flip=True), 200)):
        session = session_of(task)
        pool = torch.arange(32)
        assert len(list(GradientSteps()._draws(session, pool, 4))) == many
        assert len(list(GradientSteps(passes=2.0)._draws(session, pool, 4))) == 16
        assert len(list(GradientSteps(passes=math.inf, steps=150)._draws(session, pool, 4))) == 150


# Runs.


def test_a_resumed_run_draws_the_same_and_other_variants_are_refused(tmp_path: Path):
    def go(out, task, steps, **more):
        return prune(network(), task, LAST, density=0.5, out=tmp_path / out, budget=f"{steps}steps", **more)

    def stopped():
        return (tmp_path / "cut/state.safetensors").exists()

    task = task_of(samples=60).augmented(flip=True, shift=2)
    whole = go("whole", task, 6)
    assert go("cut", task, 6, stop=stopped).report["steps"] < 6
    for other in (task_of(samples=60), task_of(samples=60).augmented(flip=True, shift=1)):
        with pytest.raises(SecateurError, match="made with another setting"):
            go("cut", other, 6, resume=True)
    assert go("cut", task, 6, resume=True).mask.same_as(whole.mask)
    assert go("again", task, 6).mask.same_as(whole.mask)


@pytest.mark.parametrize("kind", ["arrays", "images", "huggingface"])
def test_sources_of_pictures_have_the_fields(tmp_path: Path, kind):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    if kind == "arrays":
        np.savez(tmp_path / "a.npz", x=pixels, y=np.arange(12) % 2)
        source = Arrays(str(tmp_path / "a.npz"), channels_last=True, augmentation=Augmentation(True, 3))
    elif kind == "images":
        for at, picture in enumerate(pixels):
            (tmp_path / "p" / f"{at % 2}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / "p" / f"{at % 2}" / f"{at}.png")
        source = Images(str(tmp_path / "p"), augmentation=Augmentation(True, 3))
    else:
        datasets = pytest.importorskip("datasets")
        columns = {"x": pixels.tolist(), "label": [at % 2 for at in range(12)]}
        datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "d"))
        source = HuggingFace(str(tmp_path / "d"), augmentation=Augmentation(True, 2))
    assert source.load().augmentation == source.augmentation == Augmentation(True, source.augmentation.shift)


def test_the_command_line_reaches_them(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x, y = pictures(60)
    np.savez("p.npz", x=x.numpy(), y=y.numpy())
    np.savez("rows.npz", x=x.flatten(1).numpy(), y=y.numpy())
    Path("net.py").write_text(
        "from secateur.models import CNN\ndef make():\n"
        "    return CNN(channels=3, widths=(6, 8), classes=4, depthwise=False).build()\n"
    )

    def words(data):
        fields = ["--flip", "true", "--shift", "2", "--density", "0.5", "--budget", "2steps"]
        return ["prune", "--model", "net.py:make", "--data", data, *fields, "--quiet", "--out", "run"]

    assert run(words("p.npz")) == 0
    assert json.loads(Path("run/report.json").read_text())["steps"] == 2
    assert load("run").data == Arrays(str(Path("p.npz").resolve()), augmentation=Augmentation(True, 2))
    assert prepare(load("run")).task.variation == "Augmentation(flip=True, shift=2)"
    assert run([*words("rows.npz")[:-1], "other"]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "flip and shift are for pictures" in said
    assert "leave them out" in said


def test_recipes_of_pictures_have_them_and_the_digits_do_not():
    for name, wanted in (("cifar-resnet20", (True, 4)), ("deit", (True, 16))):
        data = load(name, assets="somewhere").data
        assert data.augmentation == Augmentation(*wanted)
    assert not hasattr(load("digits-cnn").data, "augmentation")


# Refits in bfloat16.


def test_a_refit_in_bfloat16_is_that_in_float32_within_rounding():
    if not has_fast_bfloat16(CPU):
        pytest.skip("no fast bfloat16 here")
    task, found = task_of(samples=60).augmented(flip=True, shift=1), []
    for bfloat16 in (None, True, False):
        model = network()
        refit = GradientSteps(steps=5, samples=8, rate=0.001, batches=Batches(guard=0), bfloat16=bfloat16)
        session = session_of(task, model)
        mask = session.network.dense_mask()
        session.network.write(mask)
        found.append(refit(session, mask, {})[1])
    for name, weight in found[2].items():
        assert torch.equal(found[0][name], found[1][name])
        assert not torch.equal(found[0][name], weight)
        assert float((found[0][name] - weight).norm() / weight.norm()) < 0.01


def test_a_refit_in_bfloat16_is_refused_where_weights_are_not_in_float32():
    session = session_of(task_of(torch.float64), network(torch.float64))
    with pytest.raises(SecateurError, match="bfloat16 = true is for weights in float32"):
        GradientSteps(steps=2, bfloat16=True)(session, session.network.dense_mask(), {})
    stepped = []
    with pytest.raises(SecateurError, match="bfloat16 = true is for weights in float32"):
        prune(
            network(torch.float64), task_of(torch.float64), PRUNER, density=0.5, budget="2steps",
            refit=Successive(second=GradientSteps(bfloat16=True)), listeners=[stepped.append],
        )  # fmt: skip
    assert not stepped  # at once, not when the mask is found
