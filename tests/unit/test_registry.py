"""`pipelines.registry`: which version an address means, and `ghn evaluate --unless-model`, which asks that."""

from __future__ import annotations

from pathlib import Path

import pytest

from ghn.errors import InputError
from pipelines.registry import find_version, has_model, open_registry, same_version, without_password
from tests.command_line import ghn

NAME = "ghn2-test"
CANDIDATE = f"models:/{NAME}@candidate"


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry in which the second of two versions is candidate, and nobody is champion."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"
    with open_registry(uri) as client:
        client.create_registered_model(NAME)
        for _ in range(2):
            client.create_model_version(NAME, source="file:///nowhere")
        client.set_registered_model_alias(NAME, "candidate", "2")
    return uri


def test_an_alias_leads_to_its_version(tracking: str) -> None:
    with open_registry(tracking) as client:
        assert int(find_version(client, NAME, "candidate").version) == 2
        assert find_version(client, NAME, "champion") is None
        with pytest.raises(InputError, match="no registered model nobody"):
            find_version(client, "nobody", "candidate")


def test_a_model_that_is_not_there_is_told(tracking: str, tmp_path: Path) -> None:
    assert has_model(CANDIDATE, tracking) and not has_model(f"models:/{NAME}@champion", tracking)
    assert not has_model("models:/nobody@candidate", tracking)
    assert has_model(str(tmp_path), None) and not has_model(str(tmp_path / "nothing"), None)


def test_two_addresses_may_mean_one_version(tracking: str) -> None:
    assert same_version(CANDIDATE, f"models:/{NAME}/2", tracking) and same_version(CANDIDATE, CANDIDATE, tracking)
    assert not same_version(CANDIDATE, f"models:/{NAME}/1", tracking)
    for nowhere in (f"models:/{NAME}@champion", f"models:/{NAME}/3", f"models:/{NAME}/x"):
        with pytest.raises(InputError, match=f"no model {nowhere}"):
            same_version(CANDIDATE, nowhere, tracking)


def test_nothing_is_evaluated_twice(tracking: str, tmp_path: Path) -> None:
    data = ("--images", str(tmp_path), "--deepnets", str(tmp_path), "--out", str(tmp_path / "e.json"))
    command = ("evaluate", "--model", CANDIDATE, *data, "--tracking-uri", tracking, "--unless-model")
    done = ghn(*command, f"models:/{NAME}/2")
    assert done.returncode == 99 and "is the same version as" in done.stdout
    assert ghn(*command, f"models:/{NAME}/1").returncode not in (0, 99)  # it goes on, but there is no such checkpoint


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://ghn:secret@host/db", "postgresql://ghn:***@host/db"),
        ("http://ghn@host", "http://ghn@host"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
    ],
)
def test_passwords_are_not_shown(address: str, shown: str) -> None:
    assert without_password(address) == shown
