"""Write the image's software bill of materials, CycloneDX 1.6 in JSON: `make sbom`.

cyclonedx-py reads the metadata of Python packages. With `--image` these are what lies anywhere in the image, beside
CPython itself and the Debian packages; without it, this environment's packages that the image's lock names.
Debian's licences stand in each package's copyright file, not in its metadata, so they are not listed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.utils import canonicalize_name

from . import lock

Component = dict[str, Any]

DPKG_FORMAT = r"${Package}\t${Version}\t${Architecture}\t${source:Package}\t${db:Status-Status}\n"
METADATA = "find / -xdev -type d -name '*.dist-info' -prune -print0 2>/dev/null | tar -cf - --null -T - 2>/dev/null"
PYTHON_VERSION = ("python", "-c", "import platform; print(platform.python_version())")


@dataclass(frozen=True)
class Bom:
    """Components by their package URL or reference, and what each depends on."""

    components: dict[str, Component]
    dependencies: dict[str, list[str]]

    def only(self, names: Iterable[str]) -> Bom:
        """The part with these Python packages."""
        wanted = set(names)
        kept = {ref: part for ref, part in self.components.items() if canonicalize_name(part["name"]) in wanted}
        edges = {ref: [to for to in self.dependencies.get(ref, []) if to in kept] for ref in kept}
        return Bom(kept, edges)

    def with_components(self, components: Iterable[Component]) -> Bom:
        """The same with further components that say nothing of what they need."""
        return Bom(self.components | {part["bom-ref"]: part for part in components}, self.dependencies)

    def document(self, subject: Component) -> str:
        """The bill of `subject` as text, checked against the schema; a ValueError says what does not fit."""
        edges = [{"ref": ref, "dependsOn": sorted(to)} for ref, to in sorted(self.dependencies.items())]
        bill = {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": subject},
            "components": [part for _, part in sorted(self.components.items())],
            "dependencies": [{"ref": subject["bom-ref"], "dependsOn": sorted(self.components)}, *edges],
        }
        text = json.dumps(bill, indent=1) + "\n"
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
        if error:
            raise ValueError(f"not CycloneDX 1.6: {error}")
        return text


def python_packages(environment: Path) -> Bom:
    """What cyclonedx-py finds in an environment; addresses, which only lengthen it, are left out."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--sv", "1.6", "--no-validate", str(environment)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    names = {part["bom-ref"]: part["purl"] for part in found["components"] if "purl" in part}
    components = {}
    for part in found["components"]:
        kept = {key: value for key, value in part.items() if key not in ("externalReferences", "description")}
        ref = names.get(part["bom-ref"], part["bom-ref"])
        components[ref] = kept | {"bom-ref": ref}
    edges = {
        names.get(edge["ref"], edge["ref"]): [names.get(to, to) for to in edge.get("dependsOn", ())]
        for edge in found["dependencies"]
    }
    return Bom(components, {ref: to for ref, to in edges.items() if ref in components})


def debian_packages(listing: str, os_release: str) -> list[Component]:
    """The components of `dpkg-query`'s lines (see DPKG_FORMAT), for the release that /etc/os-release names."""
    settings = dict(line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    vendor, release = (settings.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    components = []
    for line in listing.splitlines():
        name, version, architecture, source, status = line.split("\t")
        if status != "installed":
            continue
        qualifiers = {"arch": architecture, "distro": f"{vendor}-{release}"}
        url = PackageURL("deb", vendor, name, version, qualifiers).to_string()
        part: Component = {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}
        components.append(part | {"properties": [{"name": "debian:source", "value": source}]})
    return components


def docker() -> list[str]:
    """The client's command line; the variable DOCKER names another one."""
    return shlex.split(os.environ.get("DOCKER", "docker"))


def inside(image: str, *command: str) -> bytes:
    """What a command writes inside the image."""
    run = [
        *docker(),
        "run",
        "--rm",
        "--network",
        "none",
        "--user",
        "0",
        "--entrypoint",
        command[0],
        image,
        *command[1:],
    ]
    return subprocess.run(run, check=True, capture_output=True).stdout


def image_packages(image: str) -> Bom:
    """Everything that an image contains: Python packages in all places, CPython, Debian packages."""
    with tempfile.TemporaryDirectory() as folder:
        bom = unpacked(inside(image, "sh", "-c", METADATA), Path(folder))
    version = inside(image, *PYTHON_VERSION).decode().strip()
    url = f"pkg:generic/python@{version}"
    cpython = {"type": "platform", "bom-ref": url, "name": "CPython", "version": version, "purl": url}
    os_release = inside(image, "cat", "/etc/os-release").decode()
    listing = inside(image, "dpkg-query", "-W", "-f", DPKG_FORMAT).decode()
    return bom.with_components([cpython, *debian_packages(listing, os_release)])


def unpacked(archive: bytes, folder: Path) -> Bom:
    """The Python packages of a tar archive of *.dist-info folders: an empty environment is made around each place."""
    files = folder / "files"
    files.mkdir()
    subprocess.run(["tar", "-xf", "-", "-C", str(files)], input=archive, check=True)
    bom = Bom({}, {})
    places = sorted(
        {path.parent for path in files.rglob("*.dist-info")}, reverse=True
    )  # what is vendored in one comes first
    for number, place in enumerate(places):
        environment = folder / str(number)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        next(environment.glob("lib/python*/site-packages")).rmdir()
        place.rename(next(environment.glob("lib/python*")) / "site-packages")
        found = python_packages(environment)
        bom = Bom(found.components | bom.components, found.dependencies | bom.dependencies)
    return bom


@click.command()
@click.option("--image", help="An image of the local container engine.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write.")
def main(image: str | None, out: Path) -> None:
    """Write the bill of materials."""
    if image:
        command = [*docker(), "image", "inspect", "--format", "{{.Id}}", image]
        version = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        name, bom = image, image_packages(image)
    else:
        name, version = "ghn-train (from its lock)", "unbuilt"
        bom = python_packages(Path(sys.prefix)).only([*(pin.name for pin in lock.read("train.txt")), "torch"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(bom.document({"type": "container", "bom-ref": "image", "name": name, "version": version}))
    sys.stdout.write(f"{out}: {len(bom.components)} components\n")


if __name__ == "__main__":
    main()
