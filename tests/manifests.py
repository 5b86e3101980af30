"""The manifests of ``infra/kubernetes`` as they would be applied."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

INFRA = Path(__file__).resolve().parents[1] / "infra"

Manifest = dict[str, Any]


@functools.cache
def build(overlay: str) -> list[Manifest]:
    """Render an overlay as ``kubectl apply -k`` would."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    kubectl = shutil.which("kubectl", path=path)
    assert kubectl is not None, "no kubectl: run `make setup`"
    command = [kubectl, "kustomize", str(INFRA / "kubernetes" / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr  # a deprecated field is a warning there
    return list(yaml.safe_load_all(done.stdout))


def kinds(overlay: str, kind: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in build(overlay) if m["kind"] == kind}
