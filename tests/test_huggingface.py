"""The data sets of Hugging Face's `datasets`, from local files alone."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secateur.core.errors import SecateurError
from secateur.tasks import Division, HuggingFace

datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'secateur[hf]'")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep caches in the test's folder, and the network out of it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def rows() -> "datasets.Dataset":
    x = np.arange(30.0).reshape(10, 3)
    return datasets.Dataset.from_dict({"x": x.tolist(), "label": ["dog", "ant"] * 5})


def test_parquet_with_words_as_labels(tmp_path: Path, rows: "datasets.Dataset") -> None:
    rows.to_parquet(str(tmp_path / "d.parquet"))
    samples = HuggingFace(str(tmp_path / "d.parquet"), division=Division(0.0)).load()
    assert samples.class_names == ("ant", "dog")
    assert samples.calibration.labels.tolist() == [1, 0] * 5
    assert samples.calibration.inputs.tolist() == np.arange(30.0).reshape(10, 3).tolist()
    assert not samples.disjoint


def test_csv_of_bad_columns(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\nhello,0\nworld,1\n" * 3)
    path = str(tmp_path / "d.csv")
    with pytest.raises(SecateurError, match=r"columns text, label.*inputs = "):
        HuggingFace(path).load()
    with pytest.raises(SecateurError, match="holds text"):
        HuggingFace(path, inputs="text").load()
    with pytest.raises(SecateurError, match="no column 'txt': did you mean 'text'"):
        HuggingFace(path, inputs="txt").load()
    with pytest.raises(SecateurError, match="no split 'tset'"):
        HuggingFace(path, inputs="text", evaluation_split="tset").load()


def test_pictures_saved_to_disk(tmp_path: Path) -> None:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})

    def part(count: int) -> "datasets.Dataset":
        pictures = [Image.new("L", (4, 3), i) for i in range(count)]
        return datasets.Dataset.from_dict(
            {"img": pictures, "label": [0, 1] * (count // 2)}, features=features
        )

    datasets.DatasetDict(train=part(6), test=part(4)).save_to_disk(str(tmp_path / "d"))
    samples = HuggingFace(str(tmp_path / "d"), channels=1).load()
    assert samples.calibration.inputs.shape == (6, 1, 3, 4)
    assert samples.calibration.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert (len(samples.evaluation), samples.class_names, samples.disjoint) == (4, ("no", "yes"), True)
    with pytest.raises(SecateurError, match=r"evaluation_limit asks for 9 .* gives only 4"):
        HuggingFace(str(tmp_path / "d"), division=Division(evaluation_limit=9)).load()


def test_a_name_without_a_network() -> None:
    message = re.compile("cannot get the data set 'someone/something'.*save_to_disk, a local .parquet")
    with pytest.raises(SecateurError, match=message):
        HuggingFace("someone/something").load()


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"nonsense")
    with pytest.raises(SecateurError, match="cannot read the data set in"):
        HuggingFace(str(tmp_path / "d.parquet")).load()
