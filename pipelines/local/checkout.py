"""The checkout of the repository, whose DAGs run on this machine, and the commands of its environment."""

from __future__ import annotations

import sys
from pathlib import Path

from ghn.errors import EnvironmentSetupError

REPOSITORY = Path(__file__).resolve().parents[2]
DAGS = REPOSITORY / "dags"


def airflow_settings(home: Path) -> dict[str, str]:
    """Return the variables with which Airflow keeps its files in ``home`` and finds the checkout's DAGs, and no others.

    Raises:
        EnvironmentSetupError: if this package was installed without them.

    """
    if not (DAGS / "smoke.py").is_file():
        raise EnvironmentSetupError(f"no DAGs at {DAGS}: run it from a checkout of the repository")
    return {
        "AIRFLOW_HOME": str(home.resolve()),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }


def installed(command: str) -> str:
    """Return the path of a command that was installed beside this interpreter."""
    return str(Path(sys.executable).with_name(command))
