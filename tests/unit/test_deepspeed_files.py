"""``infra/deepspeed``: recipes, host file and environment are as DeepSpeed and this project read them."""

from __future__ import annotations

import re

import pytest

from pipelines.recipe import load_recipe
from tests.manifests import INFRA


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("zero0", ["training.zero_stage=0"]),
        ("zero1", []),
        ("zero2", ["training.zero_stage=2"]),
        ("bfloat16", ["training.precision=bfloat16"]),
    ],
)
def test_deepspeed_recipes_are_cifar10_but_for_one_key(name: str, overrides: list[str]) -> None:
    recipe = load_recipe(str(INFRA / "deepspeed" / f"{name}.toml"))
    assert recipe == load_recipe("cifar10", overrides)
    # Stages of ZeRO do not decide the result: a run may go on with another one.
    assert (recipe.digest() == load_recipe("cifar10").digest()) is name.startswith("zero")


def test_the_hostfile_is_read_by_deepspeed_and_by_airflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.syspath_prepend(str(INFRA.parent / "dags"))
    from deepspeed.launcher.runner import fetch_hostfile

    from ghn_airflow.backends.hosts import read_hostfile

    file = str(INFRA / "deepspeed" / "hostfile")
    hosts = read_hostfile(file)
    assert dict(fetch_hostfile(file)) == {host.name: host.slots for host in hosts} == {"node-a": 2, "node-b": 2}
    assert all(host.address and host.interface for host in hosts)


def test_deepspeeds_environment_is_as_it_reads_it() -> None:
    for line in (INFRA / "deepspeed" / "deepspeed_env").read_text().splitlines():
        name, value = line.split("=", maxsplit=1)  # as DeepSpeed does: a comment or an empty line would end it
        assert re.fullmatch(r"[A-Z0-9_]+", name) and value and not re.search("KEY|SECRET|PASSWORD", name)
