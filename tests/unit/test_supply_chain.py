"""`infra/supply`: the lock, the audit, the licences and the bill of materials."""

import importlib.metadata
import io
import json
import sys
import tarfile
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.supply import audit, licences, lock, sbom

ALL, BUILD, TORCH = lock.read("all.txt"), lock.read("build.txt"), lock.read("torch.txt")
VERSIONS = {pin.name: pin.version for pin in [*ALL, *TORCH]}
PROJECT = tomllib.loads((lock.ROOT / "pyproject.toml").read_text())


def requirements(lines):
    return [Requirement(line) for line in (line.split("#")[0].strip() for line in lines) if line]


def needs(requirement):
    """A requirement and everything that it needs here, by the installed packages' metadata."""
    todo, seen = [requirement], set()
    while todo:
        current = todo.pop()
        for extra in ["", *sorted(current.extras)]:
            name = canonicalize_name(current.name)
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in importlib.metadata.requires(name) or ():
                below = Requirement(line)
                if not below.marker or below.marker.evaluate({"extra": extra}):
                    todo.append(below)
    return {name for name, _ in seen}


IMAGES = {name: requirements(path.read_text().splitlines()) for name, path in lock.IMAGES.items()}
DIRECT = {
    "dependencies": requirements(PROJECT["project"]["dependencies"]),
    "build-system": requirements(PROJECT["build-system"]["requires"]),
    **{name: requirements(lines) for name, lines in PROJECT["project"]["optional-dependencies"].items()},
    **IMAGES,
}


@pytest.mark.parametrize("group", DIRECT)
def test_every_direct_dependency_is_locked_at_a_version_that_satisfies_it(group):
    for requirement in DIRECT[group]:
        assert requirement.specifier.contains(VERSIONS[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("name", ["all.txt", "build.txt", *lock.IMAGES])
def test_every_entry_has_a_hash_and_stands_once(name):
    pins = lock.read(name)
    assert pins and all(pin.hashes for pin in pins)
    assert len({pin.name for pin in pins}) == len(pins)


@pytest.mark.parametrize("name", ["build.txt", *lock.IMAGES])
def test_the_smaller_locks_are_parts_of_the_whole(name):
    assert set(lock.read(name)) <= set(ALL)


def test_only_torch_and_what_its_registry_build_needs_have_no_hash():
    assert not any(pin.hashes for pin in TORCH)
    assert all(lock.UNHASHED.fullmatch(pin.name) for pin in TORCH)
    assert not any(lock.UNHASHED.fullmatch(pin.name) for pin in ALL)


@pytest.mark.parametrize("group", DIRECT)
def test_the_locks_hold_everything_that_is_needed(group):
    locked = {pin.name for pin in (lock.read(group) if group in IMAGES else ALL)} | {pin.name for pin in TORCH}
    for requirement in DIRECT[group]:
        assert needs(requirement) <= locked, requirement


def test_what_is_installed_here_is_what_is_locked():
    for name, version in VERSIONS.items():
        if name == "torch" or not lock.UNHASHED.fullmatch(name):
            assert importlib.metadata.version(name).split("+")[0] == version, name


@pytest.mark.parametrize("path", sorted(lock.LOCKS.iterdir()), ids=lambda path: path.name)
def test_a_lock_names_no_server(path):
    assert "://" not in path.read_text() and "index-url" not in path.read_text()


@pytest.mark.parametrize("line", ["numpy>=2", "numpy", "numpy==2.*", "numpy==2.4.6; python_version < '3.12'", "--pre"])
def test_a_line_that_is_no_exact_pin_is_refused(line):
    with pytest.raises(ValueError, match="not pinned"):
        lock.parse(line + "\n")


def test_differences_name_versions_and_withdrawn_files_but_not_added_ones():
    pin = lock.Pin("a", "1", frozenset({"0" * 64}))
    text = {
        "same": pin,
        "added": replace(pin, hashes=frozenset({"0" * 64, "1" * 64})),
        "withdrawn": replace(pin, hashes=frozenset({"1" * 64})),
        "newer": replace(pin, version="2"),
    }
    files = {
        key: {"x": f"{p.name}=={p.version} {' '.join(f'--hash=sha256:{h}' for h in p.hashes)}\n"}
        for key, p in text.items()
    }
    found = {key: lock.differences("x", files["same"], new) for key, new in files.items()}
    assert found["same"] == found["added"] == []
    assert "no longer" in found["withdrawn"][0] and "would be 2" in found["newer"][0]
    assert "would be None" in lock.differences("x", files["same"], {})[0]


@pytest.mark.parametrize(
    "licence",
    [
        "MIT",
        "MIT License",
        "Apache-2.0 AND MIT",
        "GPL-3.0-only OR MIT",
        "BSD License",
        "Mozilla Public License 2.0 (MPL 2.0)",
    ],
)
def test_licences_that_are_allowed(licence):
    assert licences.allowed(licence)


@pytest.mark.parametrize(
    "licence",
    ["UNKNOWN", "", "GPL-3.0-only", "AGPL-3.0", "MIT AND GPL-2.0", "MIT License; GNU General Public License (GPL)"],
)
def test_licences_that_need_a_decision(licence):
    assert not licences.allowed(licence)


@pytest.fixture(scope="module")
def installed():
    return licences.installed()


def test_every_installed_licence_is_allowed_or_listed_with_a_reason_and_the_table_is_of_this_lock(installed):
    page, wrong = licences.table(installed)
    assert not wrong

    def columns(text):
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
        return [(row[0], row[1], row[-1]) for row in rows]

    assert columns(licences.TABLE.read_text()) == columns(page), "run `make licences`"
    assert set(licences.EXCEPTIONS) <= set(VERSIONS)


def test_a_package_without_a_known_licence_is_named(installed):
    known = installed | {"numpy": "AGPL-3.0"}
    del known["click"]
    _, wrong = licences.table(known)
    assert wrong == [f"click {VERSIONS['click']}: not installed", f"numpy {VERSIONS['numpy']}: AGPL-3.0"]


def test_an_audit_tells_findings_from_silence():
    known = {"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}
    skipped = {"name": "b", "skip_reason": "not found"}

    def understand(*packages):
        return audit.understand(json.dumps({"dependencies": packages}), "")

    assert understand(known, skipped) == audit.Answer(("a 1: X-1, mended in 2",), ("b",))
    assert understand(skipped).failure == "not found"
    assert understand().failure
    assert audit.understand("", "Traceback\nno such host\n").failure == "no such host"


@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        ({"pypi": audit.Answer()}, 0, "0 known"),
        ({"osv": audit.Answer(("a 1: X-1",))}, 1, "X-1"),
        ({}, 3, "could not ask the vulnerability service: osv: no network"),
    ],
)
def test_an_audit_exits_with_what_it_learned(monkeypatch, capsys, answers, code, said):
    monkeypatch.setattr(audit, "ask", lambda service, pins: answers.get(service, audit.Answer(failure="no network")))
    assert audit.main() == code
    assert said in "".join(capsys.readouterr())


LISTING = """\
base-files\t12.4+deb12u11\tamd64\tbase-files\tinstalled
libc6\t2.36-9+deb12u10\tamd64\tglibc\tinstalled
libgone\t1:1.0\tamd64\tgone\tconfig-files
mount\t2.38.1-5+deb12u3\tamd64\tutil-linux\tinstalled
"""
OS_RELEASE = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'


def test_debian_packages_become_components():
    parts = sbom.debian_packages(LISTING, OS_RELEASE)
    assert [part["name"] for part in parts] == ["base-files", "libc6", "mount"]
    assert parts[1]["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12"
    assert parts[1]["properties"] == [{"name": "debian:source", "value": "glibc"}]


def package(archive, place, name, version, requires=()):
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", "License-Expression: MIT"]
    text = "\n".join([*lines, *(f"Requires-Dist: {other}" for other in requires), ""]).encode()
    entry = tarfile.TarInfo(f"{place}/{name}-{version}.dist-info/METADATA")
    entry.size = len(text)
    archive.addfile(entry, io.BytesIO(text))


def test_an_image_gives_one_valid_bill_of_all_places(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        package(archive, "opt/ghn/lib/python3.11/site-packages", "alpha", "1", ["beta"])
        package(archive, "opt/ghn/lib/python3.11/site-packages", "beta", "2")
        package(archive, "opt/ghn/lib/python3.11/site-packages/beta/_vendor", "gamma", "3")
        package(archive, "usr/local/lib/python3.11/site-packages", "beta", "1")
    said = {
        "sh": buffer.getvalue(),
        "python": b"3.11.9\n",
        "cat": OS_RELEASE.encode(),
        "dpkg-query": LISTING.encode(),
    }
    monkeypatch.setattr(sbom, "inside", lambda image, command, *rest: said[command])
    subject = {"type": "container", "bom-ref": "image", "name": "x", "version": "sha256:0"}
    bill = json.loads(sbom.image_packages("x").document(subject))
    found = {part["purl"].split("?")[0]: part for part in bill["components"]}
    assert sorted(found) == [
        "pkg:deb/debian/base-files@12.4%2Bdeb12u11",
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10",
        "pkg:deb/debian/mount@2.38.1-5%2Bdeb12u3",
        "pkg:generic/python@3.11.9",
        "pkg:pypi/alpha@1",
        "pkg:pypi/beta@1",
        "pkg:pypi/beta@2",
        "pkg:pypi/gamma@3",
    ]
    assert found["pkg:pypi/alpha@1"]["licenses"][0]["license"]["id"] == "MIT"
    edges = {edge["ref"]: edge["dependsOn"] for edge in bill["dependencies"]}
    assert edges["pkg:pypi/alpha@1"] == ["pkg:pypi/beta@2"]
    assert len(edges["image"]) == len(found)


def test_without_an_image_the_bill_is_of_its_lock_here():
    names = {pin.name for pin in lock.read("train.txt")} | {"torch"}
    bom = sbom.python_packages(Path(sys.prefix)).only(names)
    assert {canonicalize_name(part["name"]) for part in bom.components.values()} == names
    subject = {"type": "container", "bom-ref": "image", "name": "x"}
    bill = json.loads(bom.document(subject))
    assert bill["specVersion"] == "1.6" and len(bill["components"]) == len(names)
    assert any(
        "torchvision" in edge["ref"] and any("torch@" in to for to in edge["dependsOn"])
        for edge in bill["dependencies"]
    )


def test_a_bill_that_breaks_the_schema_is_refused():
    with pytest.raises(ValueError, match="not CycloneDX"):
        sbom.Bom({"a": {"type": "nonsense", "name": "a"}}, {}).document(
            {"type": "container", "bom-ref": "i", "name": "x"}
        )
