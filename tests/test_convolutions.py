"""Convolutions are linear layers over patches: exact against autograd, in every geometry."""

import itertools
from dataclasses import replace

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import nn

from secateur.capture import capture
from secateur.capture.moments import moments
from secateur.core.convolution import ConvolutionTape
from secateur.core.errors import SecateurError
from secateur.core.layer import find_layers
from secateur.core.moments import Moments
from secateur.core.patches import Patches
from secateur.core.records import Records, SampleGradients
from secateur.core.tape import Tape
from secateur.core.task import Batch
from secateur.curvature import EmpiricalFisher, Fisher, GaussNewton, Gram, Hessian
from secateur.tasks import Classification
from secateur.testing.oracles import flatten, mean_loss_of, sample_gradients

MODULES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CLASSES = 3


@st.composite
def geometries(draw):
    """A convolution, and inputs that it takes."""
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    most = {1: 5, 2: 3, 3: 2}[dims]
    each = st.integers(1, most)
    kernel = tuple(draw(each) for _ in range(dims))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(dims))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    ins = groups * draw(st.integers(1, 2)) if groups < 4 else 4  # depthwise
    outs = groups * draw(st.integers(1, 2))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    space = tuple(r + draw(st.integers(0, 3)) for r in reach)
    if all(s == 1 for s in stride) and draw(st.booleans()):
        # Where a module makes its own, circular and reflected padding may not exceed the inputs.
        padding = "same" if all(r <= n for r, n in zip(reach, space, strict=True)) else "valid"
        space = tuple(max(n, 2) for n in space)
    else:
        padding = tuple(draw(st.integers(0, min(2, n - 1))) for n in space)
    module = MODULES[dims](
        ins, outs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()), padding_mode=mode
    )
    return module, (ins, *space)


class Around(nn.Module):
    """One convolution, then something that is not linear."""

    def __init__(self, module, shape, times=1):
        super().__init__()
        self.conv, self.times = module, times
        out = module(torch.zeros(1, *shape, dtype=next(module.parameters()).dtype))
        self.register_buffer("head", torch.randn(out[0].numel(), CLASSES, dtype=out.dtype))

    def forward(self, x):
        y = sum(torch.tanh(self.conv(x * (k + 1))) for k in range(self.times))
        return y.flatten(1) @ self.head


def problem(module, shape, samples=5, times=1):
    torch.manual_seed(0)
    model = Around(module.double(), shape, times)
    x = torch.randn(samples, *shape, dtype=torch.float64)
    y = torch.randint(CLASSES, (samples,))
    task = Classification.from_arrays(x, y, evaluation=(x, y), raw=True)
    return model, task, Batch(x, y), find_layers(model)


def unfolded(model, task, batch, layers, needs, **options):
    """A tape whose records are not folded into gradients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Records, "folded", lambda self, *, moments: self)
        return capture(model, task, batch, layers, needs, torch.Generator().manual_seed(0), **options)


@hypothesis.settings(max_examples=120, deadline=None)
@hypothesis.given(geometries(), st.integers(1, 2), st.booleans())
def test_gradients_of_every_geometry_are_those_of_autograd(geometry, times, folded):
    model, task, batch, layers = problem(*geometry, times=times)
    take = capture if folded else unfolded
    tape = take(
        model,
        task,
        batch,
        layers,
        EmpiricalFisher.needs,
        *([torch.Generator()] if folded else []),
        verify=True,
    ).layers["conv"]
    truth = sample_gradients(model, task, batch, layers)["conv"]  # [s, o, i]
    flat = truth.flatten(1)
    close = {"rtol": 1e-9, "atol": 1e-11}
    assert isinstance(tape, ConvolutionTape) or folded
    torch.testing.assert_close(tape.gradient, truth.mean(0), **close)
    everything = torch.randperm(layers[0].size)
    torch.testing.assert_close(tape.factors(everything), flat.T[everything], **close)
    torch.testing.assert_close(tape.diagonal(), truth.square().mean(0), **close)
    response = torch.randn(batch.size, dtype=torch.float64)
    torch.testing.assert_close(tape.pullback(response), (response @ flat).reshape(layers[0].shape), **close)
    direction = torch.randn(layers[0].shape, dtype=torch.float64)
    torch.testing.assert_close(tape.push(direction), flat @ direction.flatten(), **close)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(geometries())
def test_gauss_newton_of_every_geometry_is_that_of_autograd(geometry):
    model, task, batch, layers = problem(*geometry, samples=3)
    needs, size = GaussNewton.needs, layers[0].size
    tape = capture(model, task, batch, layers, needs, torch.Generator()).layers["conv"]
    apply = mean_logits_of(model, layers[0], batch)
    weight = layers[0].weight.detach().flatten()
    jacobian = torch.autograd.functional.jacobian(apply, weight)  # [s, c, w]
    p = apply(weight).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    truth = torch.einsum("scw,scd,sdv->wv", jacobian, inner, jacobian) / batch.size
    factors = tape.factors(torch.arange(size))
    torch.testing.assert_close(factors @ factors.T / batch.size, truth, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(tape.diagonal().flatten(), truth.diagonal(), rtol=1e-8, atol=1e-11)


def mean_logits_of(model, layer, batch):
    def logits(vector):
        weight = layer.stored(vector.reshape(layer.shape))
        return torch.func.functional_call(model, {layer.parameter_name: weight}, (batch.inputs,))

    return logits


@hypothesis.settings(max_examples=80, deadline=None)
@hypothesis.given(geometries())
def test_moments_and_outputs_of_every_geometry_are_those_of_the_patches(geometry):
    """Patches are read off the module itself: its response to each unit weight is the patch entry."""
    model, task, batch, layers = problem(*geometry, samples=3)
    module, layer = model.conv, layers[0]
    outs, ins = layer.shape
    each = outs // module.groups
    units = torch.eye(outs * ins, dtype=torch.float64).reshape(outs * ins, outs, ins)
    answers = []  # the output that a weight of 1 alone makes is the number it is multiplied with
    for unit in units:
        values = {"weight": layer.stored(unit)}
        if module.bias is not None:
            values["bias"] = torch.zeros_like(module.bias)
        answers.append(torch.func.functional_call(module, values, (batch.inputs,)))
    answers = torch.stack(answers).reshape(outs, ins, *answers[0].shape)
    patches = torch.stack([answers[g * each, :, :, g * each].flatten(1) for g in range(module.groups)])
    found = moments(model, task, [batch], layers, gram=True)["conv"]
    close = {"rtol": 1e-10, "atol": 1e-11}
    assert found.count == patches.shape[2]
    assert found.groups == module.groups
    torch.testing.assert_close(found.total.reshape(-1, ins), patches.sum(2), **close)
    torch.testing.assert_close(found.squares.reshape(-1, ins), patches.square().sum(2), **close)
    torch.testing.assert_close(found.gram.reshape(-1, ins, ins), patches @ patches.mT, **close)
    tape = capture(model, task, batch, layers, Gram.needs, torch.Generator()).layers["conv"]
    torch.testing.assert_close(tape.gram(), patches @ patches.mT, **close)
    torch.testing.assert_close(tape.moments.squares, found.squares, **close)
    direction = torch.randn(outs, ins, dtype=torch.float64)
    parts = direction.unflatten(0, (module.groups, -1)) @ patches  # [g, o/g, n * t]
    want = parts.flatten(0, 1).unflatten(1, (batch.size, -1)).transpose(0, 1)
    torch.testing.assert_close(tape.outputs(direction), want.flatten(), **close)
    for rows, sums in found.by_group(outs):
        group = rows.start // each
        torch.testing.assert_close(sums.gram, patches[group] @ patches[group].T, **close)
        torch.testing.assert_close(
            found.beside(layer.weight)[-1 if module.groups == 1 else rows.start],
            patches[group].square().sum(1).sqrt(),
            **close,
        )


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_the_exact_hessian_of_a_convolution(mode):
    module = nn.Conv2d(2, 4, 3, padding=1, stride=2, groups=2, padding_mode=mode)
    model, task, batch, layers = problem(module, (2, 4, 5))
    tape = capture(model, task, batch, layers, Hessian.needs, torch.Generator())
    loss = mean_loss_of(model, task, batch, layers)
    weight = flatten({"conv": layers[0].weight.detach()})
    truth = torch.autograd.functional.hessian(loss, weight)
    direction = torch.randn(layers[0].shape, dtype=torch.float64)
    product = tape.hessian_product({"conv": direction})["conv"]
    torch.testing.assert_close(
        product.flatten() if product.shape == layers[0].shape else product.reshape(-1),
        truth @ direction.flatten(),
        rtol=1e-9,
        atol=1e-11,
    )


def test_pieces_of_any_size_make_the_same_gradients(monkeypatch):
    module = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    model, task, batch, layers = problem(module, (4, 6, 5), samples=7)
    whole = unfolded(model, task, batch, layers, Fisher.needs).layers["conv"]
    index = torch.arange(layers[0].size)
    wanted = whole.factors(index), whole.diagonal(), whole.gram()
    for chunk in (1, 700):
        for name in ("records", "convolution", "patches"):
            monkeypatch.setattr(f"secateur.core.{name}.CHUNK", chunk)
        assert len(whole._pieces()) > 1
        for one, other in zip(wanted, (whole.factors(index), whole.diagonal(), whole.gram()), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_a_layer_with_fewer_weights_than_records_keeps_gradients():
    module = nn.Conv2d(2, 3, 3, padding=1)
    model, task, batch, layers = problem(module, (2, 9, 9))
    tape = capture(model, task, batch, layers, Fisher.needs, torch.Generator().manual_seed(0)).layers["conv"]
    records = unfolded(model, task, batch, layers, Fisher.needs).layers["conv"]
    assert isinstance(tape, SampleGradients)
    assert tape.rows.numel() == 54 * 5 < records.numbers == 5 * (2 * 11 * 11 + 3 * 9 * 9)
    torch.testing.assert_close(tape.rows[:, 0], records.factors(torch.arange(54)))
    with pytest.raises(RuntimeError, match="no moments"):
        _ = tape.moments


@pytest.mark.parametrize("folded", [True, False])
def test_tapes_of_parts_join_to_that_of_the_batch(folded):
    module = nn.Conv1d(8, 8, 3, padding=1)
    model, task, batch, layers = problem(module, (8, 30 if folded else 4), samples=6, times=2)
    needs = EmpiricalFisher.needs
    take = [capture(model, task, part, layers, needs, torch.Generator()) for part in batch.split(4)]
    whole = capture(model, task, batch, layers, needs, torch.Generator()).layers["conv"]
    kind = SampleGradients if folded else ConvolutionTape
    joined = Tape.join(take).layers["conv"]
    assert isinstance(joined, kind)
    assert isinstance(whole, kind)
    index = torch.arange(layers[0].size)
    torch.testing.assert_close(joined.factors(index), whole.factors(index))
    torch.testing.assert_close(joined.gradient, whole.gradient)


class Frames(nn.Module):
    """A convolution over each frame of a film."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x):
        y = torch.tanh(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.last(y.mean(1).flatten(1))


def test_several_pictures_a_sample():
    torch.manual_seed(0)
    model = Frames().double()
    x, y = torch.randn(4, 3, 1, 3, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    task = Classification.from_arrays(x, y, raw=True)
    batch, layers = Batch(x, y), find_layers(model)
    truth = sample_gradients(model, task, batch, layers)
    for take, more in ((capture, [torch.Generator()]), (unfolded, [])):
        tape = take(model, task, batch, layers, EmpiricalFisher.needs, *more, verify=True)
        for layer in layers:
            found = tape.layers[layer.name].factors(torch.arange(layer.size))
            torch.testing.assert_close(found, truth[layer.name].flatten(1).T)
            direction = torch.randn(layer.shape, dtype=torch.float64)
            torch.testing.assert_close(
                tape.layers[layer.name].push(direction), truth[layer.name].flatten(1) @ direction.flatten()
            )


class TensorFlowSame(nn.Conv2d):
    """Pads by itself, as converted networks do."""

    def forward(self, x):
        needs = [
            max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            for n, s, d, k in zip(x.shape[2:], self.stride, self.dilation, self.kernel_size, strict=True)
        ]
        (h, w) = needs
        return super().forward(nn.functional.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2)))


@pytest.mark.parametrize(("size", "stride", "kernel"), [*itertools.product([5, 6], [2, 3], [3, 4])])
def test_padding_that_a_module_adds_by_itself_is_found_out(size, stride, kernel):
    model, task, batch, layers = problem(TensorFlowSame(1, 2, kernel, stride), (1, size, size))
    tape = capture(model, task, batch, layers, EmpiricalFisher.needs, torch.Generator(), verify=True)
    truth = sample_gradients(model, task, batch, layers)["conv"]
    torch.testing.assert_close(tape.layers["conv"].factors(torch.arange(layers[0].size)), truth.flatten(1).T)


class Wider(nn.Conv2d):
    """Pads in a way of its own."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (3, 3, 3, 3)))


def test_padding_of_unknown_kind_is_refused():
    model, task, batch, layers = problem(Wider(1, 2, 3), (1, 5, 5))
    for run in (
        lambda: capture(model, task, batch, layers, Fisher.needs, torch.Generator()),
        lambda: moments(model, task, [batch], layers),
    ):
        with pytest.raises(SecateurError, match=r"'conv' makes outputs of.*patches are not known: exclude"):
            run()


def test_one_picture_without_a_batch_is_refused():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(3, CLASSES, 1)

        def forward(self, x):
            return self.conv(x.T).T

    model = Single().double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    task = Classification.from_arrays(x, y, raw=True)
    with pytest.raises(SecateurError, match="no dimension that counts samples"):
        capture(model, task, Batch(x, y), find_layers(model), Fisher.needs, torch.Generator())


def test_kernels_whose_channels_lie_last_are_read_and_written():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    other.load_state_dict(plain.state_dict())
    other.to(memory_format=torch.channels_last)
    assert not other[0].weight.is_contiguous()
    layers = [find_layers(model)[0] for model in (plain, other)]
    assert torch.equal(layers[0].weight, layers[1].weight)
    for layer in layers:
        layer.write(torch.arange(108.0).reshape(4, 27))
    assert torch.equal(layers[1].weight, torch.arange(108.0).reshape(4, 27))
    assert torch.equal(other[0].weight, plain[0].weight)
    assert not other[0].weight.is_contiguous()


def test_inputs_are_never_all_unfolded(monkeypatch):
    """The largest tensor made on the way is bounded by a chunk, whatever the number of samples."""
    module = nn.Conv2d(3, 40, 5, padding=2)
    model, task, batch, layers = problem(module, (3, 8, 8), samples=24)
    tape = unfolded(model, task, batch, layers, Fisher.needs).layers["conv"]
    chunk = 2 * 64 * 75 * 40
    for name in ("records", "convolution", "patches"):
        monkeypatch.setattr(f"secateur.core.{name}.CHUNK", chunk)
    largest = [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else [out]:
                if isinstance(value, torch.Tensor):
                    held = value.untyped_storage().nbytes() // value.element_size()
                    largest[0] = max(largest[0], held)
            return out

    patches = 24 * 64 * 75
    held = max(use.rows.numel() for use in tape.uses)
    with Watch():
        tape.pullback(torch.ones(24, dtype=torch.float64))
        tape.push(torch.ones(40, 75, dtype=torch.float64))
        _ = tape.moments
    assert largest[0] <= held < patches  # as large as what is recorded
    with Watch():
        tape.diagonal()
        tape.gram()
    assert largest[0] <= max(held, chunk)


def test_moments_of_parts_add_up():
    patches = Patches((3,), (1,), (1,), ((0, 0),), groups=2)
    x = torch.randn(6, 4, 8, dtype=torch.float64)
    whole = Moments.of_patches(patches, x, gram=True)
    parts = [Moments.of_patches(patches, piece, gram=True) for piece in x.split(4)]
    both = parts[0] + parts[1]
    assert both.count == whole.count == 36
    for name in ("total", "squares", "gram"):
        torch.testing.assert_close(getattr(both, name), getattr(whole, name))
    assert replace(whole, gram=None).gram is None
