"""Recipes: tables to parts and back, overrides, and a sentence for every mistake."""

from abc import ABC
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from secateur.core import registry
from secateur.core.errors import SecateurError
from secateur.core.registry import register
from secateur.recipes import Recipe, load
from secateur.recipes.builder import Text, build_part
from secateur.recipes.describe import describe
from secateur.recipes.files import builtin_names, dump, expand, parse, read_text


class Blade(ABC):  # noqa: B024 - nothing is asked of it
    """An abstract part of a kind of its own."""

    part_name: ClassVar[str] = "blade"


@dataclass(frozen=True)
class Steel:
    """Settings that are no part."""

    carbon: float = 0.5
    sizes: tuple[int, int] | None = None


@register("blade", "knife")
@dataclass(frozen=True)
class Knife(Blade):
    """A part with one field of each type."""

    length: float
    teeth: int = 0
    sharp: bool = True
    label: str | None = None
    edge: Literal["plain", "wavy"] = "plain"
    grips: tuple[float, ...] = (1.0, 2.0)
    steel: Steel = field(default_factory=Steel)
    notes: dict[str, Any] = field(default_factory=dict)
    limit: float | None = 3.0

    def __post_init__(self) -> None:
        if self.length <= 0:
            raise SecateurError("a knife needs a positive length.")


@register("blade", "shears")
@dataclass(frozen=True)
class Shears(Blade):
    """A part made of parts."""

    blades: tuple[Blade, ...]
    spare: Blade | None = None
    main: Knife = field(default_factory=lambda: Knife(1.0))


@pytest.fixture(autouse=True)
def blades(monkeypatch):
    """Have the kind of blades in these tests, and in no others."""
    monkeypatch.setitem(registry._PARTS, "blade", {"knife": Knife, "shears": Shears})


registry._PARTS.pop("blade")

KNIFE = {"name": "knife", "length": 2}


def test_builds_every_type_of_field():
    table = {
        **KNIFE, "teeth": 3, "sharp": False, "label": "a", "edge": "wavy", "grips": [1, 2.5, 3],
        "steel": {"carbon": 1, "sizes": [3, 4]}, "notes": {"x": [1, {"y": 2}]}, "limit": "none",
    }  # fmt: skip
    knife = build_part("blade", table, "blade")
    assert knife == Knife(
        2.0, 3, False, "a", "wavy", (1.0, 2.5, 3.0), Steel(1.0, (3, 4)), {"x": [1, {"y": 2}]}, None
    )
    assert isinstance(knife.length, float)


def test_builds_parts_within_parts():
    table = {"name": "shears", "blades": [KNIFE, {"name": "shears", "blades": [KNIFE]}], "spare": KNIFE}
    shears = build_part("blade", table, "blade")
    assert shears == Shears((Knife(2.0), Shears((Knife(2.0),))), Knife(2.0))
    # Where one class alone will do, its name may be left out.
    assert build_part("blade", {"name": "shears", "blades": [], "main": {"length": 4}}, "b").main == Knife(
        4.0
    )


def test_typed_values_are_read_by_the_type_of_their_field():
    table = {
        "name": "knife", "length": Text("2"), "teeth": Text("3"), "sharp": Text("false"), "label": Text("12"),
        "edge": Text("wavy"), "grips": Text("1,2.5"), "limit": Text("none"),
    }  # fmt: skip
    assert build_part("blade", table, "b") == Knife(2.0, 3, False, "12", "wavy", (1.0, 2.5), limit=None)
    assert build_part("blade", {**KNIFE, "grips": Text("[1, 2]")}, "b").grips == (1.0, 2.0)
    assert build_part("blade", Text('{ name = "knife", length = 2 }'), "b") == Knife(2.0)


@pytest.mark.parametrize(
    "part",
    [
        Knife(2.0, label="x", limit=None, steel=Steel(0.1, (1, 2)), notes={"a": 1}),
        Shears((Knife(1.0), Shears((), None)), Knife(3.0)),
    ],
)
def test_describe_is_the_inverse(part):
    table = describe(part)
    assert build_part("blade", parse(dump(table), "test"), "b") == part


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({**KNIFE, "lenght": 1}, "recipe field 'b.lenght' is unknown: did you mean 'length'?"),
        ({**KNIFE, "zzz": 1}, "recipe field 'b.zzz' is unknown: choose from"),
        ({**KNIFE, "length": "long"}, "recipe field 'b.length' is 'long', but it must be a number."),
        ({**KNIFE, "teeth": 1.5}, "recipe field 'b.teeth' is 1.5, but it must be a whole number."),
        ({**KNIFE, "teeth": True}, "recipe field 'b.teeth' is true, but it must be a whole number."),
        ({**KNIFE, "length": True}, "recipe field 'b.length' is true, but it must be a number."),
        ({**KNIFE, "sharp": 1}, "recipe field 'b.sharp' is 1, but it must be true or false."),
        ({**KNIFE, "label": 3}, "recipe field 'b.label' is 3, but it must be text."),
        ({**KNIFE, "edge": "curly"}, "'b.edge' is 'curly', but it must be one of 'plain', 'wavy'."),
        ({**KNIFE, "grips": ["x"]}, "recipe field 'b.grips.0' is 'x', but it must be a number."),
        ({**KNIFE, "grips": 3}, "recipe field 'b.grips' is 3, but it must be a list of numbers."),
        ({**KNIFE, "steel": 3}, "recipe field 'b.steel' is 3, but it must be a table."),
        ({**KNIFE, "steel": {"sizes": [1]}}, "'b.steel.sizes' is [1], but it must be a list of 2 values."),
        ({**KNIFE, "steel": {"carbn": 1}}, "recipe field 'b.steel.carbn' is unknown: did you mean 'carbon'?"),
        ({"name": "knife"}, "recipe field 'b.length' is missing: it must be a number."),
        ({"length": 1}, "recipe table 'b' lacks 'name': name a blade, one of knife, shears."),
        ({"name": "knive"}, "recipe field 'b' asks for a blade called 'knive': did you mean 'knife'?"),
        ({"name": 3}, "recipe field 'b' asks for a blade called '3': choose from knife, shears."),
        ({**KNIFE, "length": -1}, "recipe table 'b': a knife needs a positive length."),
        (3, "recipe field 'b' is 3: give the name of a blade, or a table with its name."),
        ({"name": "shears", "blades": KNIFE}, "'b.blades' is a table, but it must be a list of blades."),
        (
            {"name": "shears", "blades": [{**KNIFE, "teet": 1}]},
            "'b.blades.0.teet' is unknown: did you mean 'teeth'?",
        ),
        (
            {"name": "shears", "blades": [], "main": {"name": "shears"}},
            "recipe field 'b.main' asks for a blade called 'shears': choose from knife.",
        ),
    ],
)
def test_every_mistake_gets_one_sentence(table, said):
    with pytest.raises(SecateurError) as raised:
        build_part("blade", table, "b")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


# The whole recipe, with the parts that there are.

SMALL = {"data": "digits", "model": {"name": "mlp", "widths": [64, 10]}, "pruner": "one-shot"}


@pytest.mark.parametrize("name", builtin_names())
def test_builtin_recipes_load_and_come_back_equal(name, tmp_path):
    recipe = load(name, assets=tmp_path)
    (tmp_path / "again.toml").write_text(recipe.dumps())
    again = load(tmp_path / "again.toml")
    assert again == recipe
    assert recipe.about


def test_the_published_recipe_is_the_published_settings(tmp_path):
    from secateur.pruners import ICBS

    assert load("garment-published", assets=tmp_path).pruner == ICBS.published()


def test_a_run_folder_stands_for_its_recipe(tmp_path):
    (tmp_path / "recipe.toml").write_text(load(SMALL).dumps())
    assert load(tmp_path) == load(SMALL)


def test_overrides_by_path_by_name_and_by_switching_parts():
    recipe = load(
        "digits", {"density": Text("0.2"), "block-size": 99, "pruner.solver": "annealing", "restarts": 3}
    )
    assert recipe.run.density == 0.2
    assert recipe.table["pruner"]["stage"]["block_size"] == 99
    assert recipe.table["pruner"]["solver"]["name"] == "annealing"
    assert recipe.table["pruner"]["solver"]["restarts"] == 3


def test_switching_a_part_takes_what_it_cannot_do_without_along():
    by_path = load(SMALL, {"data": "idx", "data.folder": "x", "limit": 3})
    assert by_path == load(SMALL, {"data": "idx", "folder": "x", "limit": 3})
    assert by_path.table["data"]["folder"] == "x"
    assert by_path.table["data"]["division"]["limit"] == 3


def test_the_same_name_again_keeps_the_settings():
    assert load(SMALL, {"model": "mlp"}) == load(SMALL)
    assert load(SMALL, {"model.name": "mlp"}) == load(SMALL)


def test_a_bare_name_means_the_run_first_and_the_outer_part_before_the_inner():
    recipe = load("digits", {"seed": 7, "solver": "greedy"})
    assert recipe.run.seed == 7
    assert recipe.table["model"]["seed"] != 7
    assert recipe.table["pruner"]["solver"]["name"] == "greedy"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"density": Text("dense")}, "recipe field 'run.density' is 'dense', but it must be a number."),
        (
            {"density": 1.5},
            "recipe table 'run': density is 1.5, but it is the fraction of the weights to keep",
        ),
        ({"density": 0}, "density is 0"),
        ({"budget": "soon"}, "cannot read the budget 'soon'"),
        ({"grouping": "row"}, "'run.grouping' is 'row', but it must be one of 'layer', 'output'"),
        ({"blok-size": 3}, "recipe field 'blok-size' is unknown: did you mean 'pruner.stage.block_size'?"),
        ({"pruner.blok_size": 3}, "'pruner.blok_size' is unknown: did you mean 'pruner.stage.block_size'?"),
        ({"model.epoch": 3}, "recipe field 'model.epoch' is unknown: did you mean 'model.epochs'?"),
        ({"qqq": 3}, "recipe field 'qqq' is unknown: `secateur recipes show NAME --resolved` lists"),
        (
            {"solver": "swapz"},
            "recipe field 'pruner.solver' asks for a solver called 'swapz': did you mean 'swaps'?",
        ),
        ({"allocation": "erq"}, "asks for an allocation called 'erq': did you mean 'erk'?"),
        ({"data": "idx"}, "recipe field 'data.folder' is missing: it must be text."),
    ],
)
def test_wrong_overrides(overrides, said):
    with pytest.raises(SecateurError) as raised:
        load("digits", overrides)
    assert said in str(raised.value)


def test_an_ambiguous_name_lists_the_paths():
    model = {"name": "trained", "network": {"name": "mlp", "widths": [64, 10], "seed": 3}}
    with pytest.raises(SecateurError, match=r"'size' could be any of 'data.size', 'pruner.batches.size'"):
        load({**SMALL, "data": {"name": "huggingface", "path": "x"}, "model": model}, {"size": 3})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({**SMALL, "prunner": "icbs"}, "recipe field 'prunner' is unknown: did you mean 'pruner'?"),
        ({"model": SMALL["model"]}, "recipe field 'data' is missing: it must be a data source ("),
        ({**SMALL, "run": 3}, "recipe field 'run' is 3, but it must be a table."),
        ({**SMALL, "run": {"densty": 1}}, "recipe field 'run.densty' is unknown: did you mean 'density'?"),
        (
            {**SMALL, "data": {"name": "digitz"}},
            "asks for a data source called 'digitz': did you mean 'digits'?",
        ),
    ],
)
def test_wrong_sections(table, said):
    with pytest.raises(SecateurError) as raised:
        load(table)
    assert said in str(raised.value)


def test_the_pruner_may_be_left_out():
    recipe = load({k: v for k, v in SMALL.items() if k != "pruner"})
    assert isinstance(recipe, Recipe)
    assert recipe.table["pruner"]["name"] == "icbs"


# Files.


def test_bad_toml_names_file_and_line(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("[data]\nname = digits\n")
    with pytest.raises(SecateurError) as raised:
        load(path)
    said = f"the recipe {path} is not TOML, line 2, column 8 (invalid value): mend it there"
    assert str(raised.value).startswith(said)
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text("[data\n")
    (run / "events.jsonl").touch()
    with pytest.raises(SecateurError) as raised:
        load(run)
    assert f"the recipe {run / 'recipe.toml'} is not TOML, line 1" in str(raised.value)
    assert "it is the recipe of a run" in str(raised.value)


def test_local_paths_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").touch()
    (tmp_path / "w.pt").touch()
    model = {"name": "function", "target": "net.py:build", "weights": "w.pt", "arguments": {"path": "w.pt"}}
    data = {"name": "arrays", "path": "w.pt"}
    table = load({"data": data, "model": model}).table
    assert table["data"]["path"] == str(tmp_path / "w.pt")
    assert table["model"]["target"] == f"{tmp_path / 'net.py'}:build"
    assert table["model"]["weights"] == str(tmp_path / "w.pt")
    assert table["model"]["arguments"] == {"path": "w.pt"}
    names = {"data": {"name": "huggingface", "path": "ylecun/mnist"}, "model": {**model, "target": "a.b:c"}}
    table = load(names).table
    assert table["data"]["path"] == "ylecun/mnist"
    assert table["model"]["target"] == "a.b:c"


def test_every_field_is_written_out():
    table = parse(load("digits").dumps(), "test")
    assert table["run"]["grouping"] == "none"
    assert table["pruner"]["stage"]["pruned"] == "none"
    assert table["pruner"]["batches"]["size"] == "none"


def test_entries_of_a_free_table_can_be_set():
    model = {"name": "function", "target": "a.b:c", "arguments": {"h": 3}}
    recipe = load(
        {**SMALL, "model": model}, {"model.arguments.w": Text("128"), "arguments.act": Text("relu")}
    )
    assert recipe.table["model"]["arguments"] == {"h": 3, "w": 128, "act": "relu"}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("garmet", "there is no recipe 'garmet': did you mean 'garment'?"),
        ("qqq", "there is no recipe 'qqq': choose from cifar-resnet20, deit, digits, digits-cnn, "),
        (
            "no/such.toml",
            "there is no recipe file no/such.toml: give the path of one, or a built-in one (cifar-resnet20",
        ),
    ],
)
def test_recipes_that_are_not_there(word, said):
    with pytest.raises(SecateurError) as raised:
        read_text(word)
    assert str(raised.value).startswith(said)


def test_recipes_that_cannot_be_read(tmp_path):
    with pytest.raises(SecateurError, match=r"is a folder without a recipe\.toml"):
        load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SecateurError, match="cannot read the recipe"):
        load(tmp_path / "binary.toml")


def test_assets_and_home(tmp_path, monkeypatch):
    monkeypatch.delenv("SECATEUR_ASSETS", raising=False)
    table = {"data": {"folder": "{assets}/x", "list": ["~/y", 3]}}
    with pytest.raises(SecateurError, match=r"'data\.folder' is .* give --assets DIR or set SECATEUR_ASSETS"):
        expand(table)
    monkeypatch.setenv("HOME", "/home/me")
    assert expand(table, tmp_path) == {"data": {"folder": f"{tmp_path}/x", "list": ["/home/me/y", 3]}}
    monkeypatch.setenv("SECATEUR_ASSETS", str(tmp_path))
    assert expand(table)["data"]["folder"] == f"{tmp_path}/x"
    assert isinstance(expand({"a": Text("~/x")})["a"], Text)


def test_relative_assets_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expand({"a": "{assets}/x"}, "sub")["a"] == str(Path.cwd() / "sub" / "x")


def test_fields_left_out_of_a_table_keep_the_defaults_of_its_owner():
    """A learned mask with another length is still a learned mask."""
    from secateur.pruners import LearnedMask

    table = {"name": "learned-mask", "averaging": {"length": 7}}
    averaging = build_part("pruner", table, "pruner").averaging
    assert averaging == replace(LearnedMask().averaging, length=7)
