"""`pipelines.local.demo`: what it says at its end is true, its files and commands are those of today."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click
import pytest

from pipelines.cli import cli
from pipelines.local.demo import closing
from pipelines.serving.limits import Limits
from pipelines.serving.request import graph_of, read_requests
from pipelines.shards.jobs import shard_deepnets


def test_the_closing_commands_and_files_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # then the demo has no store of its own to start
    nets = str(tmp_path / "nets")
    widths = {"image_size": 16, "channels": (8,), "fc_dims": (32,)}
    shard_deepnets(["deep"], nets, count=1, seed=0, shard_samples=5, max_nodes=None, **widths)
    text = closing(tmp_path, "ghn2-digits", {"architectures": {"url": nets}})

    (request,) = read_requests((tmp_path / "request.json").read_bytes(), Limits())
    assert request.specification == json.loads((tmp_path / "architecture.json").read_text())
    assert len(graph_of(request, 10, Limits())) > 50

    lines = [
        shlex.split(line.replace("sqlite:///", ""))
        for line in text.splitlines()
        if line.startswith("   ") and "predict" in line
    ]
    assert len(lines) == 2
    for program, name, *arguments in lines:
        command = cli.get_command(click.Context(cli), name)
        assert Path(program).name == "ghn" and command is not None
        given = command.make_context(name, arguments).params
        assert given["spec"] == tmp_path / "architecture.json" and bool(given["server"]) != bool(given["checkpoint"])
    assert "mlflow models serve -m models:/ghn2-digits@candidate --env-manager local" in text
