"""`pipelines.recipe`: recipes, overrides, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ghn.errors import InputError
from pipelines.recipe import RECIPES, load_recipe
from pipelines.training.engine import learning_rate


@pytest.mark.parametrize("name", sorted(file.stem for file in RECIPES.glob("*.toml")))
def test_every_recipe_is_whole_and_survives_its_own_toml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / f"{name}.toml").write_text(recipe.to_toml())
    assert load_recipe(str(tmp_path / f"{name}.toml")) == recipe
    assert tomllib.loads(recipe.to_toml())["name"] == name


def test_a_folder_of_a_recipes_name_is_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar10").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("cifar10").name == "cifar10"


def test_overrides_have_toml_types() -> None:
    recipe = load_recipe("smoke", ["training.steps=7", "training.lr=1e-2", "images.url=s3://b/p", "model.ve=false"])
    assert (recipe.training.steps, recipe.training.lr) == (7, 0.01)
    assert (recipe.images.url, recipe.model.ve) == ("s3://b/p", False)


def test_digest_ignores_places_and_logging_only() -> None:
    base = load_recipe("smoke").digest()
    assert load_recipe("smoke", ["images.url=elsewhere", "training.processes=4"]).digest() == base
    assert load_recipe("smoke", ["training.lr=0.5"]).digest() != base


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.stepz=3", "unknown key training.stepz; did you mean steps?"),
        ("trainig.steps=3", "unknown key trainig; did you mean training?"),
        ("training.steps=many", "training.steps"),
        ("training.steps=0", "training.steps"),
        ("model.hid=30", "hid=30"),
        ("training.steps", "section.key=value"),
        ("name.x=1", "not a section"),
    ],
)
def test_bad_overrides_are_named(override: str, named: str) -> None:
    with pytest.raises(InputError, match=named.replace("?", r"\?")):
        load_recipe("smoke", [override])


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recipe 'nope'.*cifar10"):
        load_recipe("nope")
    (tmp_path / "bad.toml").write_text("[training\n")
    with pytest.raises(InputError, match=r"bad.toml is not TOML"):
        load_recipe(str(tmp_path / "bad.toml"))


def test_schedules() -> None:
    step = load_recipe("cifar10").training
    assert [learning_rate(round(step.steps * f), step) for f in (0, 0.5, 0.7, 0.9)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-5]
    )
    cycle = load_recipe("embedded").training
    rates = [learning_rate(s, cycle) for s in range(cycle.steps)]
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == pytest.approx(cycle.lr, rel=0.02) and rates[-1] < 0.01 * cycle.lr
