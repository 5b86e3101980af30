"""Write infra/.env from .env.example with fresh secrets, readable by its owner alone; an existing one stays: `make compose-env`."""

from __future__ import annotations

import base64
import os
import secrets
import sys
from pathlib import Path

INFRA = Path(__file__).parents[1]


def fresh(name: str) -> str:
    """Return a secret for a variable: letters, digits, ``-`` and ``_``, which need no quoting in addresses."""
    if name == "AIRFLOW_FERNET_KEY":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(32)


def filled(example: str) -> str:
    """Return the text of an example with a secret behind each name that has no value, up to the first empty line."""
    head, gap, rest = example.partition("\n\n")
    lines = [f"{line}{fresh(line[:-1])}" if line.endswith("=") else line for line in head.splitlines()]
    return "\n".join(lines) + gap + rest


def main() -> None:
    """Write the file unless it is there."""
    target = INFRA / ".env"
    if target.exists():
        sys.stdout.write(f"{target} is there already; it was left as it is\n")
        return
    text = filled((INFRA / ".env.example").read_text())
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
    sys.stdout.write(f"{target}: fresh secrets; Airflow's password and the model server's token are in it\n")


if __name__ == "__main__":
    main()
