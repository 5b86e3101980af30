"""The scripts in ``examples``, run as their readers do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_example(
    name: str, *arguments: object, cwd: Path, python: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a script in another folder than the repository; ``python`` are options of the interpreter."""
    command = [sys.executable, *python, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
