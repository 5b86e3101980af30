"""Make the lock files in infra/lock from pyproject.toml and the image's requirements: `make lock`.

uv resolves for Linux and CPython 3.11 and gives the hash of every file of each pinned version. What is pinned already
stays as it is; `--upgrade` takes newer versions. `--check` resolves again and writes nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "infra" / "lock"
IMAGES = {f"{name}.txt": ROOT / "infra" / "docker" / f"{name}.txt" for name in ("train", "platform")}
"""Lock file and direct requirements of each image."""

UNHASHED = re.compile(r"torch|triton|cuda-.*|nvidia-.*")  # torch, and what only its registry build needs

HASHED_HEAD = """\
# Made by `make lock`; do not edit. Install with `pip install --require-hashes --no-deps --no-build-isolation`.
# torch is not here but in torch.txt: a local CPU build is another file than the registry's, with another hash on each
# machine and with none of the CUDA packages, so its version alone is pinned.
"""
TORCH_HEAD = """\
# Made by `make lock`; do not edit. Versions without hashes (the other files say why), to be used as constraints:
# `pip install -c infra/lock/torch.txt torch` takes a local CPU build where there is one, and CUDA's packages elsewhere.
"""


@dataclass(frozen=True)
class Pin:
    """One locked package: its name, its exact version and the hashes of its files."""

    name: str
    version: str
    hashes: frozenset[str]


def parse(text: str) -> list[Pin]:
    """Read a lock file's text; a line that is no exact pin is a ValueError."""
    pins = []
    for block in blocks(text):
        match = re.match(r"([A-Za-z0-9._-]+)==([^\s;*]+)(?=\s|$)", block)
        if not match:
            raise ValueError(f"not pinned with ==: {block.splitlines()[0]}")
        hashes = frozenset(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
        pins.append(Pin(str(canonicalize_name(match[1])), match[2], hashes))
    return pins


def read(name: str) -> list[Pin]:
    """The pins of infra/lock/`name`."""
    return parse((LOCKS / name).read_text())


def blocks(text: str) -> list[str]:
    """The entries of a lock file, each with its lines of hashes."""
    lines = [line for line in text.splitlines(keepends=True) if line.strip() and not line.startswith("#")]
    return re.findall(r"^\S.*\n?(?:^\s.*\n?)*", "".join(lines), re.MULTILINE)


def resolve(arguments: list[str], known: str, upgrade: bool) -> str:
    """Let uv resolve requirements; versions in `known` are kept where they still fit."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock.txt"
        output.write_text(known)
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--generate-hashes"]
        command += ["--no-header", "--no-annotate", "--python-version", "3.11"]
        command += ["--python-platform", "x86_64-manylinux_2_28"]
        command += ["--output-file", str(output), *(["--upgrade"] if upgrade else []), *arguments]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        return output.read_text()


def make(known: str, upgrade: bool = False) -> dict[str, str]:
    """Resolve everything once, then each image within it; return the text of every lock file."""
    with tempfile.TemporaryDirectory() as folder:
        build, everything = Path(folder) / "build.in", Path(folder) / "everything.txt"
        requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
        build.write_text("\n".join(["pip", *requires]))  # what installs the rest
        images = [str(path) for path in IMAGES.values()]
        full = resolve(["pyproject.toml", "--all-extras", *images, str(build)], known, upgrade)
        everything.write_text(full)
        texts = {"all.txt": full}
        for name, inputs in {"build.txt": build, **IMAGES}.items():
            texts[name] = resolve([str(inputs), "-c", str(everything)], "", False)
    torch = [f"{pin.name}=={pin.version}\n" for pin in parse(full) if UNHASHED.fullmatch(pin.name)]
    hashed = {name: select(text, lambda name: not UNHASHED.fullmatch(name)) for name, text in texts.items()}
    return {name: HASHED_HEAD + text for name, text in hashed.items()} | {"torch.txt": TORCH_HEAD + "".join(torch)}


def select(text: str, wanted: Callable[[str], bool]) -> str:
    """The entries whose package is wanted."""
    return "".join(block for block in blocks(text) if wanted(parse(block)[0].name))


def versions(text: str) -> str:
    """A lock file's versions without their hashes, so that uv asks for these anew."""
    return "".join(f"{pin.name}=={pin.version}\n" for pin in parse(text))


@click.command()
@click.option("--upgrade", is_flag=True, help="Take the newest versions that fit.")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 where the locks are not what would be made.")
def main(upgrade: bool, check: bool) -> None:
    """Make infra/lock, or check it against the package registry."""
    old = {path.name: path.read_text() for path in sorted(LOCKS.glob("*.txt"))}
    new = make("".join(versions(old.get(name, "")) for name in ("all.txt", "torch.txt")), upgrade)
    if not check:
        for name, text in new.items():
            (LOCKS / name).write_text(text)
            sys.stdout.write(f"{name}: {len(parse(text))} packages\n")
        return
    wrong = [complaint for name in sorted({*old, *new}) for complaint in differences(name, old, new)]
    sys.stdout.write("".join(f"{line}\n" for line in wrong) or "the locks resolve, to the same versions and files\n")
    sys.exit(1 if wrong else 0)


def differences(name: str, old: dict[str, str], new: dict[str, str]) -> list[str]:
    """What a lock file has otherwise than a new resolution; files that were added to a release since are no difference."""
    before, after = ({pin.name: pin for pin in parse(texts.get(name, ""))} for texts in (old, new))
    lines = []
    for package in sorted({*before, *after}):
        one, other = before.get(package), after.get(package)
        if not one or not other or one.version != other.version:
            lines.append(f"{name}: {package} is {one and one.version}, would be {other and other.version}")
        elif one.hashes - other.hashes:
            lines.append(f"{name}: {package} has hashes that the registry no longer offers")
    return lines


if __name__ == "__main__":
    main()
