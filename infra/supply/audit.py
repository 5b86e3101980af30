"""Look for known vulnerabilities in the locked packages with pip-audit: `make audit`.

Exit code 0: none known; 1: findings; 3: no vulnerability service could be asked, so nothing was learned.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import lock

SERVICES = ("pypi", "osv", "esms")  # pip-audit's names, in the order in which they are asked
FINDINGS, NOT_ASKED = 1, 3


@dataclass(frozen=True)
class Answer:
    """What a service said: findings and packages it does not know, or why it did not answer."""

    findings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    failure: str = ""


def understand(output: str, errors: str) -> Answer:
    """Read pip-audit's JSON. It exits with 0 when a service knew no package at all, which is no answer."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return Answer(failure=(errors.strip().splitlines() or ["pip-audit said nothing"])[-1])
    skipped = [package for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return Answer(failure=skipped[0]["skip_reason"] if skipped else "pip-audit looked at no package")
    findings = [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in packages
        for found in package.get("vulns", ())
    ]
    return Answer(tuple(findings), tuple(package["name"] for package in skipped))


def ask(service: str, pins: list[lock.Pin]) -> Answer:
    """Ask one service about exact versions."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text("".join(f"{pin.name}=={pin.version}\n" for pin in pins))
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        command += ["--format", "json", "--vulnerability-service", service, "--requirement", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True)
    return understand(done.stdout, done.stderr)


def main() -> int:
    """Ask the first service that answers for one package about all; return the exit code."""
    pins = [*lock.read("all.txt"), *lock.read("torch.txt")]
    for service in SERVICES:
        answer = ask(service, pins[:1])
        if not answer.failure:
            answer = ask(service, pins)
        if answer.failure:
            sys.stderr.write(f"could not ask the vulnerability service: {service}: {answer.failure}\n")
            continue
        sys.stdout.write("".join(f"{line}\n" for line in answer.findings))
        if answer.unknown:
            sys.stdout.write(f"not known to {service}: {', '.join(answer.unknown)}\n")
        known = len(pins) - len(answer.unknown)
        sys.stdout.write(f"{service}: {len(answer.findings)} known vulnerabilities in {known} packages\n")
        return FINDINGS if answer.findings else 0
    return NOT_ASKED


if __name__ == "__main__":
    sys.exit(main())
