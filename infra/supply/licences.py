"""Write docs/licences.md from the installed packages' metadata and judge each licence: `make licences`.

pip-licenses reads the metadata; names and versions are the lock's, so that the table is the same on every machine.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

from packaging.utils import canonicalize_name

from . import lock

TABLE = lock.ROOT / "docs" / "licences.md"

# Licences that ask for a notice only, and the MPL, which binds changed files of the package itself.
ALLOWED = re.compile(
    r"(the )?(mit(-0|-cmu)?|((2|3)-clause )?bsd(-[23]-clause)?|0bsd|apache(-2\.0| software| software license 2\.0)?"
    r"|isc|psf-2\.0|python software foundation|cnri-python|mpl-2\.0|mozilla public license 2\.0|unlicense|zlib|cc0-1\.0|bsl-1\.0"
    r"|academic free|dfsg approved)( license)?( \(\S.*\))?( with llvm-exception)?",
    re.IGNORECASE,
)

# Package: its licence as its own files say it, and why it may be used.
EXCEPTIONS = {
    "docutils": ("BSD-2-Clause AND public domain", "its one GPL file is an Emacs mode; only the release check uses it"),
    "huey": ("MIT", "names none in its metadata; its LICENSE file is MIT's text"),
    "psycopg2-binary": ("LGPL-3.0-or-later with an OpenSSL exception", "imported unmodified, and replaceable"),
    "skops": ("MIT", "names none in its metadata; its LICENSE file is MIT's text"),
    "text-unidecode": ("Artistic-1.0-Perl OR GPL-2.0-or-later", "used under the Artistic License, unmodified"),
}

HEAD = """\
# Licences

Made by `make licences` from the metadata of the locked packages; what is allowed, and each exception with its reason, stands
in [`infra/supply/licences.py`](../infra/supply/licences.py). "Images" says which image contains it. Where torch
comes from the registry on Linux, triton and CUDA's packages (`nvidia-*`, `cuda-*`) come with it, most of them under
NVIDIA's own licence: read it before passing such an image on. A CPU build has none of them. What a wheel bundles inside
(OpenBLAS, libgfortran, libpq) is described in that wheel's licence files, not here.

| package | version | licence | images |
|---|---|---|---|
"""


def allowed(licence: str) -> bool:
    """Whether a licence expression or a list of classifiers allows use: of an OR one side, of all else each part."""
    sides = re.split(r"\s+OR\s+", licence)
    return any(all(ALLOWED.fullmatch(part.strip()) for part in re.split(r"\s+AND\s+|;", side)) for side in sides)


def installed() -> dict[str, str]:
    """Each installed package's licence: its expression, else its classifiers, else its licence field."""
    command = [sys.executable, "-m", "piplicenses", "--with-system", "--from=mixed", "--format=json"]
    packages = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {str(canonicalize_name(package["Name"])): package["License"] for package in packages}


def table(licences: dict[str, str]) -> tuple[str, list[str]]:
    """The page, and what is wrong: packages that are not installed, or whose licence is unknown or not allowed."""
    images = {name.removesuffix(".txt"): {pin.name for pin in lock.read(name)} for name in lock.IMAGES}
    images["train"].add("torch")
    pins = [*lock.read("all.txt"), *(pin for pin in lock.read("torch.txt") if pin.name == "torch")]
    rows, wrong = [], []
    for pin in sorted(pins, key=lambda pin: pin.name):
        licence, reason = EXCEPTIONS.get(pin.name, (licences.get(pin.name, "not installed"), ""))
        if not reason and not allowed(licence):
            wrong.append(f"{pin.name} {pin.version}: {licence}")
        text = f"{licence} ({reason})" if reason else licence
        where = ", ".join(name for name, inside in images.items() if pin.name in inside)
        rows.append(f"| {pin.name} | {pin.version} | {text} | {where} |\n")
    return HEAD + "".join(rows), wrong


def main() -> int:
    """Write the table; return 1 where a licence needs a decision."""
    page, wrong = table(installed())
    TABLE.write_text(page)
    sys.stderr.write("".join(f"unknown or not allowed: {line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
