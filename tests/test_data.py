"""Data sources: what was written is read back, and a sentence for every bad file."""

import gzip
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.registry import names
from secateur.tasks import (
    Arrays,
    Classification,
    Digits,
    Division,
    Idx,
    Images,
)

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def says(*words: str) -> "re.Pattern[str]":
    return re.compile("".join(f"(?=.*{re.escape(word)})" for word in words), re.DOTALL)


def test_every_source_is_registered() -> None:
    assert {"digits", "idx", "arrays", "images", "huggingface"} <= set(names("data"))


def test_digits() -> None:
    from sklearn.datasets import load_digits

    samples = Digits().load()
    assert (len(samples.calibration), len(samples.evaluation)) == (1297, 500)
    assert (samples.classes, samples.class_names[7]) == (10, "7")
    joined = torch.cat([samples.calibration.inputs, samples.evaluation.inputs]).numpy()
    published = load_digits().data
    # Every image once: the sorted lists of rows agree.
    assert np.array_equal(joined[np.lexsort(joined.T)], published[np.lexsort(published.T)])
    task = Classification(samples)
    inputs = task.batch("calibration", torch.arange(1297), CPU).inputs
    assert (float(inputs.min()), float(inputs.max())) == (-1.0, 1.0)
    assert torch.bincount(samples.evaluation.labels).min() > 30
    assert Digits(flat=False).load().evaluation.inputs.shape == (500, 1, 8, 8)


def write_idx(path: Path, data: np.ndarray, kind: int = 8) -> None:
    raw = bytes((0, 0, kind, data.ndim)) + struct.pack(f">{data.ndim}I", *data.shape) + data.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, size, packed in (("train", 6, ".gz"), ("t10k", 4, "")):
        write_idx(
            tmp_path / f"{part}-images-idx3-ubyte{packed}", rng.integers(0, 256, (size, 3, 2), np.uint8)
        )
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{packed}", np.arange(size, dtype=np.uint8) % 3)
    return tmp_path


def test_idx(idx: Path) -> None:
    samples = Idx(str(idx)).load()
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 2), np.uint8)
    assert np.array_equal(samples.calibration.inputs[:, 0].numpy(), images)
    assert samples.evaluation.labels.tolist() == [0, 1, 2, 0]
    assert samples.disjoint
    assert Idx(str(idx), flat=True).load().evaluation.inputs.shape == (4, 6)
    assert len(Idx(str(idx), division=Division(limit=2)).load().calibration) == 2
    normal = Classification(samples).batch("calibration", torch.arange(6), CPU).inputs[:, 0]
    torch.testing.assert_close(normal, (torch.from_numpy(images) / 255 - 0.5) / 0.5)


def test_bad_idx(idx: Path) -> None:
    path = idx / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(SecateurError, match=says(str(path), "fetch the file anew")):
        Idx(str(idx)).load()
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(SecateurError, match=says("should hold 36 bytes", "holds 35")):
        Idx(str(idx)).load()
    write_idx(path, np.zeros((6, 3, 2), np.float32), kind=0x0D)
    with pytest.raises(SecateurError, match=says("not an IDX file of bytes", "as they are published")):
        Idx(str(idx)).load()
    write_idx(path, np.zeros((5, 3, 2), np.uint8))
    with pytest.raises(SecateurError, match=says("5 inputs but 6 labels")):
        Idx(str(idx)).load()
    path.unlink()
    with pytest.raises(SecateurError, match=says("no train-images-idx3-ubyte.gz", "four IDX files")):
        Idx(str(idx)).load()


def test_arrays_npz(tmp_path: Path) -> None:
    path = str(tmp_path / "d.npz")
    x, y = np.random.default_rng(0).normal(size=(10, 3)), np.arange(10) % 2
    np.savez(path, train_x=x, train_y=y, test_x=x[:4] + 1, test_y=y[:4])
    samples = Arrays(path).load()
    assert np.array_equal(samples.calibration.inputs.numpy(), x)
    assert np.array_equal(samples.evaluation.inputs.numpy(), x[:4] + 1)
    assert samples.disjoint
    same = Arrays(path, "test_x", "test_y", "test_x", "test_y").load()
    assert not same.disjoint


def test_arrays_of_other_kinds(tmp_path: Path) -> None:
    x, y = draw(10, 3), torch.arange(10) % 2
    torch.save((x, y), tmp_path / "pair.pt")
    torch.save({"data": x, "targets": y}, tmp_path / "dict.pt")
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "inputs.npy", x.numpy())
    np.save(tmp_path / "folder" / "labels.npy", y.numpy())
    for name in ("pair.pt", "dict.pt", "folder"):
        samples = Arrays(str(tmp_path / name), division=Division(0.0)).load()
        assert torch.equal(samples.calibration.inputs, x)
        assert torch.equal(samples.calibration.labels, y)
        assert not samples.disjoint


def test_channels_move_to_the_front(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (6, 4, 5, 3), np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.zeros(6, int))
    samples = Arrays(str(tmp_path / "d.npz"), channels_last=True, division=Division(0.0)).load()
    assert np.array_equal(samples.calibration.inputs.numpy(), x.transpose(0, 3, 1, 2))


def test_bad_array_files(tmp_path: Path) -> None:
    def load(name: str, **names: str) -> None:
        Arrays(str(tmp_path / name), **names).load()  # type: ignore[arg-type]

    np.savez(tmp_path / "odd.npz", alpha=np.ones((4, 2)), beta=np.zeros(4, int))
    np.savez(tmp_path / "objects.npz", x=np.array([{}, 1], dtype=object), y=np.zeros(2, int))
    np.save(tmp_path / "x.npy", np.ones(3))
    (tmp_path / "broken.npz").write_bytes(b"PK nonsense")
    (tmp_path / "broken.pt").write_bytes(b"nonsense")
    (tmp_path / "text.csv").write_text("1,2")
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    torch.save([1], tmp_path / "list.pt")
    cases = [
        ("none.npz", {}, says("no file", "none.npz", "give the path")),
        ("odd.npz", {}, says("alpha, beta", 'inputs = "x"')),
        ("odd.npz", {"inputs": "alpha", "labels": "betta"}, says("no array 'betta'", "did you mean 'beta'")),
        ("odd.npz", {"inputs": "alpha"}, says("names of both")),
        ("objects.npz", {}, says("cannot read")),
        ("x.npy", {}, says("give the folder")),
        ("broken.npz", {}, says("cannot read", "damaged")),
        ("broken.pt", {}, says("broken.pt")),
        ("text.csv", {}, says("no known kind", ".npz")),
        ("module.pt", {}, says("more than tensors", "torch.save")),
        ("list.pt", {}, says("neither a dict nor a tuple")),
    ]
    for name, columns, message in cases:
        with pytest.raises(SecateurError, match=message):
            load(name, **columns)


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_images(tmp_path: Path) -> None:
    for i in range(5):
        paint(tmp_path / "zebra" / f"{i}.png", (i, 10, 20))
        paint(tmp_path / "ant" / "deep" / f"{i}.png", (100 + i, 1, 2))
    (tmp_path / "zebra" / "notes.txt").write_text("not a picture")
    samples = Images(str(tmp_path), division=Division(0.0)).load()
    assert samples.class_names == ("ant", "zebra")
    assert samples.calibration.inputs.shape == (10, 3, 3, 4)
    assert samples.calibration.inputs[:, 0, 0, 0].tolist() == [100, 101, 102, 103, 104, 0, 1, 2, 3, 4]
    assert samples.calibration.labels.tolist() == [0] * 5 + [1] * 5
    grey = Images(str(tmp_path), size=(6, 5), channels=1).load()
    assert grey.calibration.inputs.shape == (8, 1, 6, 5)
    assert (len(grey.evaluation), grey.disjoint) == (2, True)


def test_images_in_train_and_val(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for label in ("a", "b"):
            paint(tmp_path / part / label / "x.png", (1, 2, 3))
    samples = Images(str(tmp_path)).load()
    assert (len(samples.calibration), len(samples.evaluation)) == (2, 2)
    paint(tmp_path / "val" / "bb" / "x.png", (1, 2, 3))
    with pytest.raises(SecateurError, match=says("bb", "not among those to calibrate")):
        Images(str(tmp_path)).load()


def test_bad_images(tmp_path: Path) -> None:
    def load(**arguments: object) -> None:
        Images(str(tmp_path / "d"), division=Division(0.0), **arguments).load()  # type: ignore[arg-type]

    with pytest.raises(SecateurError, match=says("no folder", "one folder a class")):
        load()
    (tmp_path / "d").mkdir()
    with pytest.raises(SecateurError, match=says("no folders in it")):
        load()
    (tmp_path / "d" / "a").mkdir()
    (tmp_path / "d" / "b").mkdir()
    with pytest.raises(SecateurError, match=says("no pictures", ".png")):
        load()
    paint(tmp_path / "d" / "a" / "0.png", (1, 2, 3))
    paint(tmp_path / "d" / "a" / "1.png", (1, 2, 3), (5, 5))
    with pytest.raises(SecateurError, match=says("1.png", "5 x 5", "3 x 4", "size = [32, 32]")):
        load()
    (tmp_path / "d" / "a" / "1.png").write_bytes((tmp_path / "d" / "a" / "0.png").read_bytes()[:40])
    with pytest.raises(SecateurError, match=says("1.png", "remove it or replace it")):
        load()
    with pytest.raises(SecateurError, match=says("channels is 2")):
        load(channels=2)
    with pytest.raises(SecateurError, match=says("size is (0, 32)", "height and a width")):
        load(size=(0, 32))


def test_torch_datasets() -> None:
    x, y = draw(10, 3), torch.arange(10) % 2
    pairs = torch.utils.data.TensorDataset(x, y)
    task = Classification.from_dataset(pairs, division=Division(0.0))
    first = task.batch("calibration", torch.arange(5), CPU)
    assert torch.equal(first.inputs, x[:5])
    assert torch.equal(first.targets, y[:5])
    assert not task.samples.disjoint
    with pytest.raises(SecateurError, match=says("not a pair")):
        Classification.from_dataset(torch.utils.data.TensorDataset(x))
    with pytest.raises(SecateurError, match=says("sample 1", "shape [2]", "[3]", "transform")):
        Classification.from_dataset(Ragged(), division=Division(0.0))
    with pytest.raises(SecateurError, match=says("no length", "from_arrays")):
        Classification.from_dataset(Endless())


class Ragged(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        return draw(3 - at), at


class Endless(torch.utils.data.IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> "Iterator[tuple[Tensor, int]]":
        return iter([])


@pytest.mark.assets
def test_cifar_from_an_npz(assets: Path) -> None:
    path = f"{assets}/data/cifar10/cifar10_lossless.npz"
    source = Arrays(
        path,
        "train_first4000_x",
        "train_first4000_y",
        "test_first100_x",
        "test_first100_y",
        channels_last=True,
        division=Division(limit=64),
    )
    samples = source.load()
    assert samples.calibration.inputs.shape == (64, 3, 32, 32)
    assert len(samples.evaluation) == 100


@pytest.mark.parametrize("suffix", ["pt", "npz", "safetensors"])
@pytest.mark.parametrize("junk", [b"jj" * 99, b"", b"PK\x03\x04junk"])
def test_junk_instead_of_arrays(tmp_path: Path, junk: bytes, suffix: str) -> None:
    path = tmp_path / f"junk.{suffix}"
    path.write_bytes(junk)
    with pytest.raises(SecateurError, match=r"damaged|more than tensors"):
        Arrays(str(path)).load()
