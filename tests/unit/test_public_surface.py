"""`ghn.__all__`: the public names are few, each is documented with an example, and the examples say what happens."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import ghn

SHOWN_ELSEWHERE = {
    "DataError": "raised for damaged files: tests/unit/test_model_checkpoint.py",
    "read_deepnets": "needs the published files: tests/unit/test_deepnets.py, docs/how-to/data-plane.md",
}
MODULES = sorted(module.name for module in pkgutil.walk_packages(ghn.__path__, "ghn."))


def test_the_list_is_complete_and_sorted() -> None:
    assert len(set(ghn.__all__)) == len(ghn.__all__) <= 25
    assert ghn.__all__ == sorted(ghn.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


@pytest.mark.parametrize("name", ghn.__all__)
def test_every_name_has_a_docstring_with_an_example(name: str) -> None:
    text = inspect.getdoc(getattr(ghn, name)) or ""
    assert text and (">>>" in text or name in SHOWN_ELSEWHERE), name


@pytest.mark.parametrize("name", MODULES)
def test_examples_say_what_happens(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.failed == 0
