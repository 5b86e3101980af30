"""`ghn shard` and the reader on real S3 servers: kills at every write, full disks, expired credentials, faults."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.shards.reader import open_reader
from pipelines.storage import LocalStore, open_store
from pipelines.training.run_folder import read_metrics
from tests import s3_servers
from tests.command_line import GHN_COMMAND, ghn
from tests.distributed.jobs import train
from tests.faulty_proxy import Proxy, proxy
from tests.images import make_folder
from tests.shard_sets import content, keys

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(params=["s3", "moto"])
def remote(request: pytest.FixtureRequest) -> str:
    """An address on each implementation of S3."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def faulty(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


def image_job(source: Path, out: str) -> list[str]:
    return ["shard", "images", "--source", str(source), "--out", out, "--shard-samples", "12"]


def test_jobs_give_the_same_on_every_store(remote: str, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", per_class=20)
    deepnets = ["shard", "deepnets", "--split", "val", "--count", "23", "--shard-samples", "4", "--out"]
    for root in (f"{remote}/sets", str(tmp_path / "sets")):
        assert ghn(*image_job(source, f"{root}/images")).returncode == 0
    for part in ("3/3", "1/3", "2/3"):
        assert ghn(*deepnets, f"{remote}/sets/nets", "--part", part).returncode == 0
    assert ghn(*deepnets, str(tmp_path / "sets" / "nets")).returncode == 0
    assert content(open_store(f"{remote}/sets")) == content(LocalStore(str(tmp_path / "sets")))
    verified = ghn("shard", "verify", f"{remote}/sets", "--deep")
    assert verified.returncode == 0, verified.stdout
    local, there = (
        keys(open_reader(f"{root}/images", "train", "images", seed=1).take(60))
        for root in (str(tmp_path / "sets"), f"{remote}/sets")
    )
    assert local == there


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """An image source, and the shard sets that an undisturbed job makes of it."""
    source = make_folder(tmp_path / "source", per_class=12)
    assert ghn(*image_job(source, str(tmp_path / "whole"))).returncode == 0
    return source, content(LocalStore(str(tmp_path / "whole")))


def test_kill_nine_at_every_write(faulty: Proxy, s3: str, whole: tuple[Path, dict[str, bytes]]) -> None:
    """Stop the store before or after each write, kill the job there, and run it again; until a job gets through."""
    source, expected = whole
    killed_at = []
    for number in itertools.count():
        out, when = f"{s3}/killed-{number}", ("hang-before", "hang-after")[number % 2]
        seen = itertools.count()
        faulty.hanging.clear()
        faulty.released.clear()
        faulty.fault = lambda request, number=number, when=when, seen=seen: (
            when if request.method == "PUT" and next(seen) == number else None
        )
        job = subprocess.Popen([GHN_COMMAND, *image_job(source, out)], stderr=subprocess.DEVNULL)
        while job.poll() is None and not faulty.hanging.wait(0.02):
            pass
        if not faulty.hanging.is_set():
            assert job.returncode == 0
            break
        killed_at.append(next(r.path for r in reversed(faulty.requests) if r.method == "PUT").rpartition("/")[2])
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        faulty.released.set()
        faulty.fault = lambda request: None
        assert ghn(*image_job(source, out)).returncode == 0
        assert content(open_store(out)) == expected, f"killed {when} write {number}"
    assert len(killed_at) >= len(expected) and {"images", "journal", "manifest.json"} <= {
        name.partition("-")[0] for name in killed_at
    }


def test_expired_credentials_in_the_middle(faulty: Proxy, s3: str, whole: tuple[Path, dict[str, bytes]]) -> None:
    source, expected = whole
    faulty.fault = lambda request: "expired" if faulty.count("PUT") > 2 else None
    done = ghn(*image_job(source, f"{s3}/x"))
    assert done.returncode == 4 and "credentials have expired; renew them and run the same command" in done.stderr
    faulty.fault = lambda request: None
    assert ghn(*image_job(source, f"{s3}/x")).returncode == 0
    assert content(open_store(f"{s3}/x")) == expected


def test_a_store_that_fails_now_and_then(faulty: Proxy, s3: str, whole: tuple[Path, dict[str, bytes]]) -> None:
    source, expected = whole
    faults = ("503", "drop", None, "cut", None, None, None)
    faulty.fault = lambda request: faults[request.number % len(faults)]
    done = ghn(*image_job(source, f"{s3}/x"))
    assert done.returncode == 0, done.stderr
    assert '"event": "retry"' in done.stderr
    assert ghn("shard", "verify", f"{s3}/x", "--deep").returncode == 0
    faulty.fault = lambda request: None
    assert content(open_store(f"{s3}/x")) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can not mount: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)


def test_a_disk_that_fills_up(small_disk: Path, tmp_path: Path) -> None:
    job = ["shard", "images", "--source", "digits", "--shard-samples", "200", "--out"]
    assert ghn(*job, str(tmp_path / "whole")).returncode == 0
    done = ghn(*job, str(small_disk / "x"))
    assert done.returncode == 4 and "No space left on device" in done.stderr
    assert not [path for path in small_disk.rglob("*") if path.name.startswith(".")]
    enlarge(small_disk)
    assert ghn(*job, str(small_disk / "x")).returncode == 0
    assert content(LocalStore(str(small_disk / "x"))) == content(LocalStore(str(tmp_path / "whole")))


def test_a_bucket_that_fills_up(small_disk: Path, tmp_path: Path) -> None:
    job = ["shard", "images", "--source", "digits", "--shard-samples", "200", "--out"]
    assert ghn(*job, str(tmp_path / "whole")).returncode == 0
    with s3_servers.running("rclone", small_disk) as client:
        done = ghn(*job, "s3://ghn/x", **client, GHN_S3_DEADLINE_S="2")
        assert done.returncode == 4 and "the space" in done.stderr
        enlarge(small_disk)
        assert ghn(*job, "s3://ghn/x", **client).returncode == 0
        store = small_disk / "data" / "ghn" / "x"
        assert content(LocalStore(str(store))) == content(LocalStore(str(tmp_path / "whole")))


def test_training_over_damaged_shards(tmp_path: Path) -> None:
    """By default training names the shard and stops; asked to skip, it goes on and counts."""
    job = ["--image-size", "16", "--out"]
    images = ["shard", "images", "--source", "digits", "--shard-samples", "60", "--limit", "300", *job]
    assert ghn(*images, str(tmp_path / "images")).returncode == 0
    nets = ["shard", "deepnets", "--split", "train", "--count", "12", "--shard-samples", "5", "--max-nodes", "100"]
    widths = ["--channels", "8", "--fc-dims", "32"]
    assert ghn(*nets, *widths, *job, str(tmp_path / "nets")).returncode == 0
    victim = sorted((tmp_path / "images" / "train").glob("*.tar"))[1]
    victim.write_bytes(victim.read_bytes()[:-1])
    failed = train(tmp_path, tmp_path / "failed", steps=3)
    assert failed.returncode != 0 and victim.name in failed.stderr and "Traceback" not in failed.stderr
    done = train(tmp_path, tmp_path / "run", arguments=("--on-bad-shard", "skip"), steps=3)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["bad_shards"] == [victim.name] and rows[-1]["replaced_samples"] > 0
    assert rows[-1]["read_mb"] > 0 and rows[-1]["read_stall_s"] >= 0
    assert any(json.loads(line)["event"] == "bad_shard" for line in done.stderr.splitlines() if line.startswith('{"e'))
