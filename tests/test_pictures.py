"""Pictures: folders and zip files, a model's own preprocessing, crops, and the order of classes."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.core.errors import SecateurError
from secateur.tasks import Arrays, Classification, Division, HuggingFace, Images, Normalisation
from secateur.tasks.labels import matching
from secateur.tasks.pictures import Pictures, opened
from secateur.tasks.preparation import read_processor
from secateur.tasks.samples import Labelled, Samples

transformers = pytest.importorskip("transformers", reason="image processors need transformers: the extra hf")

ALL = Division(0.0)


def says(*words: str) -> "re.Pattern[str]":
    return re.compile("".join(f"(?=.*{re.escape(word)})" for word in words), re.DOTALL)


def noise(height: int = 40, width: int = 50, seed: int = 0, channels: int = 3) -> Image.Image:
    """A picture that no two ways of resizing leave the same: blocks, with noise on them."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 200, (height // 5, width // 5, channels)).repeat(5, 0).repeat(5, 1)
    pixels = pixels + rng.integers(0, 50, pixels.shape)
    return Image.fromarray(pixels.squeeze().astype(np.uint8))


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    noise(seed=seed).save(stream, "png")
    return stream.getvalue()


def zipped(path: Path, members: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


def unzipped(path: str, folder: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return str(folder)


MEMBERS = {
    "b/1.png": png(1), "b/0.png": png(2), "a/deep/er/x.png": png(3), "a/b.png": png(4), "a/notes.txt": b"",
    "a.b/z.PNG": png(5), "empty/": b"",
}  # fmt: skip


def same(one: Samples, other: Samples) -> bool:
    return one.class_names == other.class_names and all(
        torch.equal(one.part(part).inputs, other.part(part).inputs)
        and torch.equal(one.part(part).labels, other.part(part).labels)
        for part in ("calibration", "evaluation")
    )


def test_a_zip_is_read_as_the_folder_in_it(tmp_path: Path) -> None:
    path = zipped(tmp_path / "d.zip", MEMBERS)
    samples = Images(path, division=ALL).load()
    assert same(samples, Images(unzipped(path, tmp_path / "d"), division=ALL).load())
    assert samples.class_names == ("a", "a.b", "b", "empty")
    assert samples.calibration.labels.tolist() == [0, 0, 1, 2, 2]
    assert samples.calibration.inputs[0].tolist() == np.asarray(noise(seed=4)).transpose(2, 0, 1).tolist()
    division = Division(0.4, limit=2)
    limited = Images(path, division=division).load()
    assert same(limited, Images(str(tmp_path / "d"), division=division).load())
    assert len(limited.calibration) == 2


@pytest.mark.parametrize("above", ["", "data/", "data set.v1/"])
def test_a_folder_around_everything_and_hidden_files_do_not_count(tmp_path: Path, above: str) -> None:
    members = {
        f"{part}/{label}/{i}.png": png(i) for part in ("train", "val") for label in "ab" for i in (1, 2)
    }
    hidden = ("__MACOSX/train/a/._1.png", ".git/a/x.png", "train/a/._1.png", "train/.cache/x.png")
    path = zipped(
        tmp_path / "d.zip",
        {f"{above}{name}": content for name, content in members.items()}
        | {name if name[0] in "._" else f"{above}{name}": b"junk" for name in hidden},
    )
    samples = Images(path).load()
    assert (samples.class_names, samples.disjoint) == (("a", "b"), True)
    assert samples.evaluation.labels.tolist() == [0, 0, 1, 1]
    assert same(samples, Images(unzipped(path, tmp_path / "d") + f"/{above}").load())


def test_only_what_is_taken_is_unpacked(tmp_path: Path) -> None:
    path = zipped(tmp_path / "d.zip", {f"{label}/{i}.png": png(i) for label in "ab" for i in range(20)})
    opened: list[str] = []
    read = zipfile.ZipFile.read

    def note(self, member, *rest):
        opened.append(member.filename)
        return read(self, member, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "read", note)
        Images(path, division=Division(0.5, limit=3, evaluation_limit=2)).load()
    assert len(opened) == len(set(opened)) == 5
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["d.zip"]


def test_bad_zips(tmp_path: Path) -> None:
    path = tmp_path / "d.zip"
    path.write_bytes(b"junk" * 50)
    with pytest.raises(SecateurError, match=says("cannot read the zip file", str(path), "fetch it anew")):
        Images(str(path)).load()
    (tmp_path / "d.txt").write_text("hello")
    with pytest.raises(SecateurError, match=says("pictures cannot be read from", "one folder a class")):
        Images(str(tmp_path / "d.txt")).load()
    zipped(path, {"a/0.png": png(), "b/0.png": png(1)})
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(50) + whole[250:])
    with pytest.raises(
        SecateurError, match=says("cannot unpack", "a/0.png", "damaged or encrypted")
    ) as raised:
        Images(str(path), division=ALL).load()
    assert "\n" not in str(raised.value)
    zipped(path, {"0.png": png()})
    with pytest.raises(SecateurError, match=says("no folders in it")):
        Images(str(path)).load()
    zipped(path, {"a/x.txt": b"", "b/y.txt": b""})
    with pytest.raises(SecateurError, match=says("no pictures in the folders")):
        Images(str(path)).load()
    zipped(path, {"a/0.png": png()[:60], "b/0.png": png()})
    with pytest.raises(SecateurError, match=says(f"{path}/a/0.png", "remove it or replace it")):
        Images(str(path), division=ALL).load()


def processors() -> dict[str, object]:
    """Image processors that work without torchvision, small and not all the same."""
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import (
        MobileNetV2ImageProcessorPil,
    )
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    colours = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    vit = {"height": 16, "width": 12}
    return {
        "vit": ViTImageProcessorPil(size=vit),
        "swin": ViTImageProcessorPil(size=vit, resample=3, **colours),
        "deit": DeiTImageProcessorPil(size=vit, crop_size={"height": 10, "width": 14}, **colours),
        "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 20}, crop_pct=0.7),
        "resnet": ConvNextImageProcessorPil(size={"shortest_edge": 400}, **colours),
        "mobilenet": MobileNetV2ImageProcessorPil(size={"shortest_edge": 20}, crop_size=vit),
        "rescaled": ViTImageProcessorPil(size=vit, rescale_factor=1 / 127.5, image_mean=1.0, image_std=2.0),
        "plain": ViTImageProcessorPil(size=vit, do_normalize=False),
        "raw": ViTImageProcessorPil(size=vit, do_normalize=False, do_rescale=False),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with each processor, and one with pictures of several sizes."""
    folder = tmp_path_factory.mktemp("processors")
    for name, processor in processors().items():
        processor.save_pretrained(folder / name)
    for label in "ab":
        (folder / "pictures" / label).mkdir(parents=True)
        for i, (height, width) in enumerate([(40, 50), (55, 45), (30, 30)]):
            noise(height, width, i).save(folder / "pictures" / label / f"{i}.png")
    noise(35, 35, channels=1).save(folder / "pictures" / "b" / "grey.png")
    return folder


@pytest.mark.parametrize("name", processors())
def test_pictures_are_prepared_as_the_models_own_processor_does(saved: Path, name: str) -> None:
    samples = Images(str(saved / "pictures"), processor=str(saved / name), division=ALL).load()
    assert samples.calibration.inputs.dtype == torch.uint8
    found = Classification(samples).batch("calibration", torch.arange(7), torch.device("cpu")).inputs
    own = transformers.AutoImageProcessor.from_pretrained(saved / name)
    files = sorted((saved / "pictures").rglob("*.png"))
    wanted = own([Image.open(file).convert("RGB") for file in files], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, wanted.float(), rtol=0, atol=2e-6)


def test_processors_of_arrays_and_of_data_sets(saved: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [noise(seed=i) for i in range(6)]
    folder = str(saved / "deit")
    own = transformers.AutoImageProcessor.from_pretrained(folder)
    wanted = own(pictures, return_tensors="pt")["pixel_values"]
    x, y = np.stack([np.asarray(picture) for picture in pictures]), np.arange(6) % 2
    cases = {"last": x, "first": x.transpose(0, 3, 1, 2), "grey": x[..., 0], "one": x[..., :1]}
    for name, inputs in cases.items():
        np.savez(tmp_path / f"{name}.npz", x=inputs, y=y)
    sources: list[Arrays | HuggingFace] = [
        Arrays(str(tmp_path / f"{name}.npz"), processor=folder, channels_last=name == "last", division=ALL)
        for name in ("first", "last")
    ]
    sources.append(Arrays(str(tmp_path / "last.npz"), processor=folder, division=ALL))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": pictures, "label": y}, features=features)
    rows.save_to_disk(str(tmp_path / "d"))
    sources.append(HuggingFace(str(tmp_path / "d"), processor=folder, division=ALL))
    for source in sources:
        samples = source.load()
        assert samples.normalisation is not None
        inputs = samples.normalisation(samples.calibration.inputs)
        torch.testing.assert_close(inputs, wanted, rtol=0, atol=2e-6)
        assert samples.processor is not None
    grey, one = (
        Arrays(str(tmp_path / f"{name}.npz"), processor=folder, division=ALL).load().calibration.inputs
        for name in ("grey", "one")
    )
    assert torch.equal(grey, one)
    assert torch.equal(grey[:, 0], grey[:, 2])
    np.savez(tmp_path / "float.npz", x=x.astype(np.float32), y=y)
    with pytest.raises(
        SecateurError, match=says("float32", "bytes (uint8)", "leave it out (--processor none)")
    ):
        Arrays(str(tmp_path / "float.npz"), processor=folder).load()


def test_bytes_of_pictures_that_nobody_declared(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "d"))
    inputs = HuggingFace(str(tmp_path / "d"), division=ALL).load().calibration.inputs
    assert inputs[3].tolist() == np.asarray(noise(seed=3)).transpose(2, 0, 1).tolist()


def test_processors_that_cannot_be_used(saved: Path, tmp_path: Path) -> None:
    def load(folder: Path, **settings: object) -> None:
        Images(str(saved / "pictures"), processor=str(folder), **settings).load()  # type: ignore[arg-type]

    with pytest.raises(SecateurError, match=says("it holds no preprocessor_config.json", "by hand")):
        load(saved / "pictures")
    with pytest.raises(SecateurError, match=says("there is no such folder")):
        load(saved / "none")
    with pytest.raises(SecateurError, match=says("leave out size and normalisation")):
        load(saved / "vit", size=(8, 8), normalisation=Normalisation(mean=(0.5,)))
    settings = json.loads((saved / "vit" / "preprocessor_config.json").read_text())
    settings |= {"size": {"shortest_edge": 20}}
    (tmp_path / "uneven").mkdir()
    (tmp_path / "uneven" / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(SecateurError, match=says("pictures of several sizes", "leave processor out")):
        load(tmp_path / "uneven")
    (tmp_path / "uneven" / "preprocessor_config.json").write_text(
        json.dumps({**settings, "image_mean": [0.0] * 5})
    )
    with pytest.raises(SecateurError, match=says("ViTImageProcessor", "cannot prepare the pictures")):
        load(tmp_path / "uneven")


def test_a_processor_that_does_more_is_refused(tmp_path: Path) -> None:
    from transformers.models.efficientnet.image_processing_pil_efficientnet import (
        EfficientNetImageProcessorPil,
    )

    EfficientNetImageProcessorPil(rescale_offset=True).save_pretrained(tmp_path)
    with pytest.raises(
        SecateurError, match=says("EfficientNet", "more than resize, crop, rescale and normalise")
    ):
        read_processor(str(tmp_path), 3)


TIMM = {
    "architecture": "vit_x",
    "pretrained_cfg": {
        "input_size": [3, 16, 16], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "crop_pct": 0.8,
        "interpolation": "bicubic", "crop_mode": "center",
    },
}  # fmt: skip


def test_the_config_of_timm(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    samples = Images(str(saved / "pictures"), processor=str(tmp_path), division=ALL).load()
    by_hand = Images(
        str(saved / "pictures"), size=(16, 16), crop=0.8, resampling="bicubic", division=ALL,
        normalisation=Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
    ).load()  # fmt: skip
    assert same(samples, by_hand)
    assert samples.normalisation == by_hand.normalisation
    TIMM_SQUASHED = {"pretrained_cfg": TIMM["pretrained_cfg"] | {"crop_mode": "squash"}}
    (tmp_path / "config.json").write_text(json.dumps(TIMM_SQUASHED))
    with pytest.raises(SecateurError, match=says("crop_mode 'squash'", "by hand")):
        read_processor(str(tmp_path), 3)
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {}}))
    with pytest.raises(SecateurError, match=says("does not give input_size, mean and std")):
        read_processor(str(tmp_path), 3)


@pytest.mark.parametrize("shape", [(40, 50), (60, 40), (100, 30), (20, 20)])
def test_crops_are_those_of_a_processor_with_crop_pct(shape: tuple[int, int]) -> None:
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    own = ConvNextImageProcessorPil(
        size={"shortest_edge": 20}, crop_pct=20 / 26, do_rescale=False, do_normalize=False
    )
    picture = noise(*shape)
    found = Pictures((20, 20), 3, 20 / 26, "bicubic").decode(picture)
    wanted = own(picture, return_tensors="np")["pixel_values"][0]
    # Where an odd number of pixels is left over, the two put the middle differently.
    short, long = sorted(shape)
    if (int(26 * long / short) - 20) % 2 == 0:
        assert np.array_equal(found, wanted)
    assert found.shape == wanted.shape == (3, 20, 20)


@pytest.mark.parametrize("shape", [(40, 50), (50, 40), (60, 480), (480, 60)])
@pytest.mark.parametrize("size", [(16, 16), (10, 20), (20, 10)])
@pytest.mark.parametrize("crop", [1.0, 0.7])
def test_crops_keep_proportions_and_middle(
    shape: tuple[int, int], size: tuple[int, int], crop: float
) -> None:
    height, width = shape
    down, across = np.mgrid[:height, :width]
    ramps = np.stack([down * (200 / height), across * (200 / width), 0 * down], -1).astype(np.uint8)
    found = Pictures(size, 3, crop).decode(Image.fromarray(ramps)).astype(float)
    assert found.shape == (3, *size)
    # The middle stays the middle, and one pixel is as long across as down.
    assert found[0].mean() == pytest.approx(100, abs=8)
    assert found[1].mean() == pytest.approx(100, abs=8)
    scale = max(size[0] / crop / height, size[1] / crop / width)
    for ramp, axis, side in ((found[0], 0, height), (found[1], 1, width)):
        step = np.diff(ramp, axis=axis).mean()
        assert step == pytest.approx(200 / side / scale, rel=0.25, abs=0.3)


def test_crops_that_cannot_be(saved: Path) -> None:
    with pytest.raises(SecateurError, match=says("crop is 1.5", "crop = 0.875")):
        Images(str(saved / "pictures"), size=(8, 8), crop=1.5).load()
    with pytest.raises(SecateurError, match=says("crop needs a size")):
        Images(str(saved / "pictures"), crop=0.5).load()


def labelled(*names: str, labels: tuple[int, ...] = ()) -> Classification:
    numbers = torch.tensor(labels or range(len(names)))
    part = Labelled(torch.zeros(len(numbers), 2), numbers)
    return Classification(Samples(part, part, names, None))


def test_classes_get_the_numbers_of_the_model() -> None:
    task = labelled("cat", "hot_dog", "Dog", labels=(0, 1, 2, 1))
    found = task.matched({0: "dog", 1: "cat, house cat", 2: "hot dog", 3: "bird"})
    assert found.samples.calibration.labels.tolist() == [1, 2, 0, 2]
    assert found.samples.evaluation.labels.tolist() == [1, 2, 0, 2]
    assert found.samples.class_names == ("dog", "cat, house cat", "hot dog", "bird")
    assert re.search("another order .* numbered by their names .*'cat' is 1", found.remarks[0])
    assert not task.remarks


@pytest.mark.parametrize(
    "labels",
    [
        {0: "LABEL_0", 1: "LABEL_1"},  # no names
        {0: "tench", 1: "goldfish"},  # others, as with folders called n01440764
        {0: "A", 1: "b, bee"},  # the same order
        {0: "a", 1: "b", 2: "b"},  # the same order, though a name occurs twice
        {},
    ],
)
def test_classes_keep_their_numbers(labels: dict[int, str]) -> None:
    task = labelled("a", "b")
    assert task.matched(labels) is task


def test_names_of_which_only_some_match_are_refused() -> None:
    with pytest.raises(SecateurError, match=says("1 of the 2 classes", "'katze'", "kat", "rename")):
        matching(["dog", "katze"], {0: "dog", 1: "kat"}, "the data")
    with pytest.raises(SecateurError, match=says("two classes", "'cat, kitty'", "join them")):
        matching(["cat", "dog", "kitty"], {0: "dog", 1: "cat, kitty"}, "the data")
    with pytest.raises(SecateurError, match=says("1 of the 2", "'crane'")):
        matching(["crane", "dog"], {0: "dog", 1: "crane", 2: "crane"}, "the data")
    with pytest.raises(SecateurError, match=says("1 of the 2", "'ab'")):
        matching(["ab", "b"], {0: "b", **{n: f"a{n}" for n in range(1, 99)}}, "the data")


def test_a_part_of_the_classes_under_other_names_is_remarked_on() -> None:
    task = labelled("n01440764", "n01443537")
    found = task.matched({0: "tench", 1: "goldfish", 2: "shark"})
    assert torch.equal(found.samples.calibration.labels, task.samples.calibration.labels)
    assert re.search("no class .* 2 classes where the model has 3", found.remarks[0])


# What would silently be something else.


def coloured(place: Path, *names: str) -> None:
    """Write a picture of one colour into each of some folders."""
    for number, name in enumerate(names):
        for at in range(4):
            (place / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (60 * number, 0, 0)).save(place / name / f"{at}.png")


def test_sixteen_bits_become_eight_and_wider_ones_are_refused(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert np.array_equal(np.asarray(opened(tmp_path / "ramp.png", 1)), ramp // 257)
    for kind in (np.float32, np.int32):
        Image.fromarray(ramp.astype(kind)).save(tmp_path / "wide.tif")
        with pytest.raises(ValueError, match="convert it to 8 bits"):
            opened(tmp_path / "wide.tif", 1)


def test_pictures_stand_upright(tmp_path):
    tilted = Image.new("RGB", (6, 2), (255, 0, 0))
    exif = tilted.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    tilted.save(tmp_path / "tilted.jpg", exif=exif)
    assert opened(tmp_path / "tilted.jpg", 3).size == (2, 6)
    deep = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png", exif=exif)
    turned = np.asarray(opened(tmp_path / "deep.png", 1))
    assert np.array_equal(turned, [[4, 1], [5, 2], [6, 3]])  # clockwise


def test_folders_around_the_classes_are_looked_through(tmp_path):
    coloured(tmp_path / "deep" / "set", "cat", "dog", "eel")
    assert Images(str(tmp_path)).load().class_names == ("cat", "dog", "eel")


def test_parts_are_known_in_any_case(tmp_path):
    coloured(tmp_path / "Training", "cat", "dog")
    coloured(tmp_path / "Test", "cat", "dog")
    samples = Images(str(tmp_path)).load()
    assert samples.class_names == ("cat", "dog")
    assert len(samples.calibration) == len(samples.evaluation) == 8


def test_a_single_class_and_a_test_part_alone_are_refused(tmp_path):
    coloured(tmp_path / "one", "cat")
    with pytest.raises(
        SecateurError, match="has a single folder, 'cat', but a classifier tells classes apart"
    ):
        Images(str(tmp_path / "one")).load()
    (tmp_path / "one" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(SecateurError, match="has a single folder"):  # before any picture is read
        Images(str(tmp_path / "one")).load()
    coloured(tmp_path / "half" / "test", "cat", "dog")
    coloured(tmp_path / "half" / "val", "cat", "dog")
    with pytest.raises(
        SecateurError, match=r"evaluate with alone \(test, val\): add those to calibrate with"
    ):
        Images(str(tmp_path / "half")).load()


def test_pictures_that_are_missing_or_too_large_are_named(tmp_path, monkeypatch):
    coloured(tmp_path, "cat", "dog")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(SecateurError, match=r"cannot read the picture .*decompression bomb"):
        Images(str(tmp_path)).load()
    with pytest.raises(ValueError, match="there is none"):
        opened(None, 3)


@pytest.mark.parametrize("missing", [0, 2])
def test_a_missing_picture_of_a_data_set_is_named(tmp_path, missing):
    datasets = pytest.importorskip("datasets")
    pictures = [None if at == missing else Image.new("RGB", (4, 4)) for at in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 0, 1]}, features=features)
    rows.save_to_disk(str(tmp_path / "d"))
    told = says(f"cannot read the picture {missing} of column 'image'", "(there is none): remove it")
    with pytest.raises(SecateurError, match=told):
        HuggingFace(str(tmp_path / "d"), division=ALL).load()
