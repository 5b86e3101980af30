"""The house rules that a linter does not know: small modules, small functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

CODE = ("ghn", "pipelines", "dags", "infra", "examples", "benchmarks", "tests")
FILES = sorted(file for folder in CODE for file in (REPOSITORY / folder).rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_modules_have_at_most_450_lines_and_functions_60(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= 450
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert not {name: lines for name, lines in lengths.items() if lines > 60}
