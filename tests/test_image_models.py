"""Image classifiers of transformers and timm, and `secateur prune --model --data` of them."""

import json
import re
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from secateur.cli.app import run
from secateur.core.errors import SecateurError
from secateur.core.mask import Mask
from secateur.export import save_pretrained
from secateur.models import ImageClassifier, Timm
from secateur.recipes import load
from secateur.recipes.quick import quick_recipe, title
from secateur.tasks import Images

transformers = pytest.importorskip("transformers", reason="image classifiers need transformers: the extra hf")

LABELS = {0: "dog", 1: "cat, house cat", 2: "bird"}
SIDE = 16


def configurations() -> dict[str, Any]:
    """Tiny networks of each family."""
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 12}
    vit = {**small, "image_size": SIDE, "patch_size": 4}
    labels = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
    return {
        "vit": transformers.ViTConfig(**vit, **labels),
        "deit": transformers.DeiTConfig(
            **vit, **labels, architectures=["DeiTForImageClassification"]
        ),
        "swin": transformers.SwinConfig(
            image_size=SIDE, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4,
            **labels,
        ),
        "convnext": transformers.ConvNextConfig(
            patch_size=2, num_stages=2, hidden_sizes=[6, 8], depths=[1, 1], image_size=SIDE, **labels
        ),
        "resnet": transformers.ResNetConfig(
            embedding_size=6, hidden_sizes=[6, 8], depths=[1, 1], layer_type="basic", **labels
        ),
        "mobilenet": transformers.MobileNetV2Config(
            depth_multiplier=0.1, image_size=SIDE, initializer_range=0.3, **labels
        ),
    }  # fmt: skip


def made(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return transformers.AutoModelForImageClassification.from_config(configurations()[name]).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model of each family, their processor, and pictures of three classes."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("vision")
    for name in configurations():
        made(name).save_pretrained(folder / name)
        ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder / name)
    transformers.LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(folder / "llama")
    rng = np.random.default_rng(0)
    for number, label in enumerate(("bird", "cat", "dog")):
        (folder / "pictures" / label).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 120, (20, 24, 3)) + 60 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "pictures" / label / f"{i}.png")
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for file in sorted((folder / "pictures").rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    samples = Images(str(folder / "pictures"), size=(SIDE, SIDE)).load()
    x, y = samples.calibration.inputs, samples.calibration.labels
    np.savez(folder / "pictures.npz", images=x.permute(0, 2, 3, 1).numpy(), labels=y.numpy())
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", configurations())
def test_image_classifiers_load_and_are_saved_as_they_are(place: Path, tmp_path: Path, name: str) -> None:
    model = ImageClassifier(str(place / name)).build()
    assert not model.training
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    wanted = made(name)(x).logits
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in made(name).state_dict().items())
    torch.testing.assert_close(model(x).logits, wanted)
    processor = Images(str(place / "pictures"), processor=str(place / name)).load().processor
    save_pretrained(model, tmp_path / "m", processor=processor)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "m").eval()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(again(x).logits, wanted)
    assert again.config.id2label == LABELS
    prepared = transformers.AutoImageProcessor.from_pretrained(tmp_path / "m")
    picture = Image.open(place / "pictures" / "cat" / "0.png")
    one, other = (p(picture, return_tensors="pt")["pixel_values"] for p in (prepared, processor))
    assert torch.equal(one, other)


def test_checkpoints_that_are_not_whole_are_refused(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    made("vit").save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    lacking = {key: value for key, value in tensors.items() if not key.startswith("classifier")}
    save_file(lacking, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        SecateurError, match=r"lacks 2 weights of ViTFor.* no classification head.* trained image"
    ):
        ImageClassifier(str(folder)).build()
    save_file({**tensors, "classifier.bias": torch.zeros(5)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SecateurError, match=r"1 weights of another shape .*classifier\.bias"):
        ImageClassifier(str(folder)).build()
    with pytest.raises(SecateurError, match=r"no such folder.*config\.json and model\.safetensors"):
        ImageClassifier(str(tmp_path / "none")).build()
    transformers.LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(
        SecateurError, match=r"llama has no classification head.*AutoModelForImageClassification"
    ):
        ImageClassifier(str(tmp_path / "llama")).build()


def fake_timm() -> Any:
    """Stand in for timm, which cannot be imported without torchvision."""
    timm: Any = types.ModuleType("timm")

    def create_model(
        model_name: str, pretrained: bool = False, num_classes: int = 10, width: int = 4
    ) -> nn.Module:
        if model_name != "tiny":
            raise RuntimeError(f"Unknown model ({model_name})")
        layers = [nn.Flatten(), nn.Linear(3 * SIDE * SIDE, width), nn.ReLU(), nn.Linear(width, num_classes)]
        model = nn.Sequential(*layers)
        model.downloaded = pretrained
        return model.train()

    class Description:
        def to_dict(self) -> dict[str, Any]:
            middle = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
            return {**middle, "input_size": (3, SIDE, SIDE), "crop_pct": 0.9, "interpolation": "bicubic"}

    timm.create_model = create_model
    timm.get_pretrained_cfg = lambda name: Description() if name == "tiny" else None
    return timm


def test_models_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SecateurError, match=r"needs timm, which cannot be imported .*pip install timm"):
        Timm("tiny").build()
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    before = torch.random.get_rng_state()
    model = Timm("tiny", classes=3, arguments={"width": 5}, seed=1).build()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (model[3].weight.shape, model.training, model.downloaded) == ((3, 5), False, False)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    other = Timm("tiny", str(tmp_path / "w.pt"), 3, arguments={"width": 5}).build()
    assert torch.equal(other[1].weight, model[1].weight)
    assert not torch.equal(Timm("tiny", classes=3, arguments={"width": 5}).build()[1].weight, model[1].weight)
    assert Timm("tiny", pretrained=True).build().downloaded
    with pytest.raises(SecateurError, match="do not fit the model"):
        Timm("tiny", str(tmp_path / "w.pt")).build()
    with pytest.raises(SecateurError, match=r"timm cannot make 'tinny' \(Unknown.*list_models"):
        Timm("tinny").build()
    with pytest.raises(SecateurError, match="leave one out"):
        Timm("tiny", "w.pt", pretrained=True)


def words(place: Path, model: str, data: str, *more: str, out: str = "run") -> list[str]:
    start = ["prune", "--model", model, "--data", str(place / data), "--density", "0.5", "--quiet"]
    return [*start, "--pruner", "one-shot", "--out", out, *more]


def report() -> dict[str, Any]:
    return json.loads(Path("run/report.json").read_text())


def loss_without_secateur(place: Path, folder: Path) -> float:
    """Measure the pruned model on the pictures that evaluated it, by transformers alone."""
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    division = load("run").data.division
    files = sorted((place / "pictures").rglob("*.png"))
    chosen = [files[at] for at in division.plan(len(files), None, "").evaluation.tolist()]
    images = [Image.open(file) for file in chosen]
    numbers = {"dog": 0, "cat": 1, "bird": 2}
    targets = torch.tensor([numbers[file.parent.name] for file in chosen])
    with torch.no_grad():
        logits = model(**processor(images, return_tensors="pt")).logits
    return float(nn.functional.cross_entropy(logits, targets))


@pytest.mark.parametrize("name", configurations())
def test_pruning_a_folder_of_pictures(place: Path, name: str) -> None:
    assert run(words(place, str(place / name), "pictures", "--save-model")) == 0
    found = report()
    assert found["density"]["overall"] == pytest.approx(0.5, abs=0.01)
    loss = loss_without_secateur(place, Path("run/model"))
    assert loss == pytest.approx(found["evaluation"]["pruned"]["loss"], abs=1e-5)
    mask = Mask.load("run/mask.safetensors")
    state = transformers.AutoModelForImageClassification.from_pretrained("run/model").state_dict()
    assert all(not state[f"{layer}.weight"].flatten(1)[~mask[layer]].any() for layer in mask)


def test_zip_and_arrays_give_what_the_folder_gives(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = []
    for data in ("pictures", "pictures.zip"):
        assert run(words(place, str(place / "vit"), data, out=f"run/{data}")) == 0
        losses.append(json.loads(Path(f"run/{data}/report.json").read_text())["evaluation"])
        assert run(["evaluate", f"run/{data}"]) == 0
        assert "as the report says" in capsys.readouterr().out
    assert losses[0] == losses[1]
    assert run(words(place, str(place / "vit"), "pictures.npz", out="run/arrays")) == 0
    assert load("run/arrays").data.processor == str(place / "vit")


def test_evaluating_the_folder_of_an_image_classifier(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(place / "vit"), "--data", str(place / "pictures")]) == 0
    told = capsys.readouterr().out
    assert "numbered by their names" in told
    assert "accuracy" in told
    assert run(["evaluate", str(place / "vit")]) == 2
    assert "is an image classifier: say what to measure it on" in capsys.readouterr().err


NETWORK = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.ReLU(), nn.Linear(4, 3))

def small():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
"""


def test_networks_that_functions_build(place: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    assert run(words(place, "net.py:make", "pictures", "--data.size", "[16, 16]")) == 0
    assert report()["density"]["overall"] == pytest.approx(0.5, abs=0.01)
    np.savez("d.npz", x=np.random.default_rng(0).normal(size=(40, 5)).astype("f"), y=np.arange(40) % 2)
    assert run(["prune", "--model", "net.py:small", "--data", "d.npz", "--budget", "2steps", "--quiet"]) == 0
    assert Path("runs/small-1/report.html").exists()


def test_pruning_a_model_of_timm(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    assert run(words(place, "timm:tiny", "pictures")) == 2
    assert "has random weights" in capsys.readouterr().err
    torch.save(Timm("tiny", classes=3).build().state_dict(), "w.pt")
    assert run(words(place, "timm:tiny", "pictures", "--weights", "w.pt", "--classes", "3")) == 0
    data = load("run").data
    assert (data.size, data.crop, data.resampling, data.normalisation.std) == (
        (SIDE, SIDE), 0.9, "bicubic", (0.25, 0.25, 0.25),
    )  # fmt: skip
    assert run(words(place, "timm:tinny", "pictures")) == 2
    assert "timm does not know 'tinny'" in capsys.readouterr().err
    Path("hub").mkdir()
    config = {"architecture": "tiny", "num_classes": 3, "pretrained_cfg": {
        "input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9,
        "interpolation": "bicubic",
    }}  # fmt: skip
    Path("hub/config.json").write_text(json.dumps(config))
    save_file(Timm("tiny", classes=3).build().state_dict(), "hub/model.safetensors")
    assert run(words(place, "hub", "pictures", out="hub-run")) == 0


def test_what_data_are_shows_in_their_path(tmp_path: Path) -> None:
    for name in (
        "saved/dataset_info.json",
        "tables/data/train-0.parquet",
        "arrays/x.npy",
        "idx/t10k-images-idx3-ubyte",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    kinds = {
        "huggingface": ("saved", "tables", "rows", "d.parquet", "someone/something"),
        "arrays": ("arrays", "d.pt", "d.safetensors", "d.npz"),
        "images": ("d.ZIP", "."),
        "idx": ("idx",),
    }
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").touch()
    for kind, every in kinds.items():
        for data in every:
            assert quick_recipe("module.path:function", data)["data"]["name"] == kind, data
    assert quick_recipe("someone/llama", "text.txt")["model"]["name"] == "causal-lm"
    assert title("timm:vit_tiny") == "vit_tiny"
    assert title("a/net.py:make") == "make"
    assert title("a/vit/") == "vit"
    assert quick_recipe("m:f", "idx")["data"] == {"name": "idx", "folder": "idx"}


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        (
            "{place}/vit",
            "{place}/none",
            "'.*none' is not there: give as data a folder with one folder of pictures",
        ),
        ("{place}/vit", "text.txt", "is an image classifier, and 'text.txt' a text: give as data a folder"),
        ("{place}/vit", "{place}/vit/config.toml", "is not there"),
        ("net.py:make", "{place}/pictures", "there is no file 'net.py'"),
        ("net.py:make", "{place}/vit/config.yaml", "is not there: give as data"),
        ("{place}/llama", "{place}/pictures", "is no image classifier .*LlamaForCausalLM.*give a text"),
        ("{place}/none", "{place}/pictures", "cannot load the model .*there is no such folder"),
        (
            "someone/vit",
            "{place}/pictures.zip",
            r"cannot load the model 'someone/vit' \(there is no such folder, and from the hub: .*\): give",
        ),
        (
            "{place}/vit",
            "nowhere",
            "cannot get the data set 'nowhere' .*a folder with one folder of pictures a class, or a .zip",
        ),
        ("timm:x", "{place}/pictures", "needs timm, which cannot be imported"),
    ],
)
def test_every_mistake_gets_one_sentence(
    place: Path,
    model: str,
    data: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    typed = ["--model", model.format(place=place), "--data", data.format(place=place)]
    assert run(["prune", *typed, "--out", "x"]) == 2
    told = capsys.readouterr().err
    assert re.search(said, told)
    assert told.count("\n") == 1
    assert not Path("x").exists()


def test_a_classifier_without_a_processor_takes_its_size_from_the_config(place: Path) -> None:
    made("vit").save_pretrained("m")
    data = str(place / "pictures")
    assert quick_recipe("m", data)["data"] == {"name": "images", "folder": data, "size": [SIDE, SIDE]}
