"""`pipelines.shards.writer` and `jobs`: same bytes on S3 and in folders, whole or not there, exactly once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn.errors import DataError, InputError, StorageError
from pipelines.part import Part
from pipelines.shards.jobs import shard_deepnets, shard_images
from pipelines.shards.manifest import MANIFEST_NAME, Rejection, read_manifest
from pipelines.shards.reader import ShardReader
from pipelines.shards.writer import SampleRecord, SetWriter
from pipelines.storage import LocalStore, open_store
from tests.faulty_proxy import proxy
from tests.images import make_folder
from tests.shard_sets import FACTS, content, keys, records, write_shards


def test_folder_and_s3_hold_the_same_bytes(s3: str, tmp_path: Path) -> None:
    stores = [open_store(s3), open_store(str(tmp_path / "set"))]
    for store in stores:
        manifest = write_shards(store, records(25), shard_samples=10)
        assert [shard.samples for shard in manifest.shards] == [10, 10, 5]
        assert read_manifest(store, "images") == manifest
    assert content(stores[0]) == content(stores[1])
    assert set(content(stores[0])) == {MANIFEST_NAME, *(shard.name for shard in manifest.shards)}


def test_plain_tar_and_webdataset_can_read_a_shard(tmp_path: Path) -> None:
    import webdataset

    manifest = write_shards(LocalStore(str(tmp_path)), records(4), shard_samples=10)
    shard = tmp_path / manifest.shards[0].name
    with tarfile.open(shard) as archive:
        assert archive.getnames()[:2] == ["0000.cls", "0000.png"]
        assert {member.mtime for member in archive.getmembers()} == {0}
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert keys(samples) == ["0000", "0001", "0002", "0003"] and samples[3]["png"] == bytes([3]) * 3


def test_an_unfinished_set_does_not_exist_and_is_finished_by_the_same_job(tmp_path: Path) -> None:
    store, whole = LocalStore(str(tmp_path / "broken")), LocalStore(str(tmp_path / "whole"))

    def breaking():
        yield from records(25)[:17]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(store, breaking(), shard_samples=10)
    with pytest.raises(InputError, match=r"no shard set .*ghn shard images"):
        read_manifest(store, "images")
    first = Path(store.root, "images-train-000000.tar")
    written = first.stat().st_mtime_ns
    write_shards(store, records(25), shard_samples=10)
    write_shards(whole, records(25), shard_samples=10)
    assert content(store) == content(whole)
    assert first.stat().st_mtime_ns == written  # what was there is left alone


def test_leftovers_of_another_job_are_removed(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.write("images-train-000009.tar", b"left behind")
    write_shards(store, records(3), shard_samples=10)
    assert set(store.list()) == {MANIFEST_NAME, "images-train-000000.tar"}


def test_what_others_left_in_the_folder_stays(tmp_path: Path) -> None:
    foreign = ["n01440764.tar", "images-val-000000.tar", "journal.json", ".notes.tmp", "sub/images-train-000009.tar"]
    for name in foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    for _ in range(2):
        write_shards(LocalStore(str(tmp_path)), records(3), shard_samples=10)
        assert all((tmp_path / name).read_bytes() == b"mine" for name in foreign)


def test_a_journal_of_another_request_is_not_believed(tmp_path: Path) -> None:
    """A is stopped, B overwrites some of its shards and is stopped, A goes on."""
    store, whole = LocalStore(str(tmp_path / "broken")), LocalStore(str(tmp_path / "whole"))

    def stopped(count: int) -> Iterator[SampleRecord]:
        yield from (replace(record, fields={"png": bytes([count])}) for record in records(25)[:count])
        raise StorageError("stopped")

    for count, facts in ((17, FACTS), (7, {**FACTS, "seed": 1})):
        with pytest.raises(StorageError):
            write_shards(store, stopped(count), shard_samples=5, facts=facts)
    items = [replace(record, fields={"png": bytes([17])}) for record in records(25)]
    for target in (store, whole):
        write_shards(target, items, shard_samples=5)
    assert content(store) == content(whole)


def test_a_finished_set_is_never_overwritten_by_another_request(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    manifest = write_shards(store, records(5), shard_samples=2)
    assert write_shards(store, iter(()), shard_samples=2) == manifest
    with pytest.raises(InputError, match=r"another seed \(0, asked for 1\)"):
        write_shards(store, records(5), shard_samples=2, facts={**FACTS, "seed": 1})


def test_an_empty_source_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no samples"):
        write_shards(LocalStore(str(tmp_path)), [], shard_samples=2)
    assert not any(tmp_path.rglob("*"))


def test_damaged_or_foreign_manifests_are_named(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    write_shards(store, records(3), shard_samples=10)
    with pytest.raises(InputError, match="holds images shards, but deepnets"):
        read_manifest(store, "deepnets")
    whole = store.read(MANIFEST_NAME)
    for damaged in (
        whole[:50],
        whole.replace(b'\n "samples": 3', b'\n "samples": 4'),
        whole.replace(b"images-", b"../images-"),
    ):
        assert damaged != whole
        store.write(MANIFEST_NAME, damaged)
        with pytest.raises(DataError, match=r"manifest\.json is damaged"):
            read_manifest(store, "images")


def test_image_job_on_s3(s3: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", per_class=20)
    manifests = shard_images(str(folder), f"{s3}/images", seed=0, shard_samples=8)
    assert sum(manifest.samples for manifest in manifests.values()) == 60
    assert manifests["train"].classes == ["class 0 é", "class 1 é", "class 2 é"]
    again = shard_images(str(folder), f"{s3}/images", seed=0, shard_samples=8)
    assert again == manifests
    assert str(tmp_path) not in manifests["train"].encode().decode()
    with pytest.raises(InputError, match="another seed"):
        shard_images(str(folder), f"{s3}/images", seed=1, shard_samples=8)


def test_an_unreadable_image_leaves_no_set(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images")
    next(folder.rglob("*.jpg")).write_bytes(b"not an image")
    with pytest.raises(InputError, match="can not be read"):
        shard_images(str(folder), str(tmp_path / "out"), seed=0, shard_samples=2)
    assert len(list((tmp_path / "out").rglob(MANIFEST_NAME))) < 3


@pytest.mark.parametrize("check", ["decode", "quick"])
def test_unreadable_images_are_all_listed_and_left_out_if_asked(check: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", per_class=20)
    whole = sorted(folder.rglob("*.jpg"))
    for path in whole[:2]:
        path.write_bytes(path.read_bytes()[:-30])
    whole[-1].write_bytes(b"not an image")
    bad = {path.relative_to(folder).as_posix() for path in (*whole[:2], whole[-1])}
    found: set[str] = set()
    with pytest.raises(InputError, match="can not be read"):
        shard_images(str(folder), str(tmp_path / "out"), seed=0, shard_samples=8, check=check)
    manifests = shard_images(
        str(folder), str(tmp_path / "skipped"), seed=0, shard_samples=8, check=check, on_bad_image="skip"
    )
    for split, manifest in manifests.items():
        found |= {item.name for item in manifest.rejected}
        stored = keys(ShardReader(LocalStore(str(tmp_path / "skipped" / split)), "images", seed=0).in_order())
        assert len(set(stored)) == len(stored) == manifest.samples
    assert found == bad and sum(manifest.samples for manifest in manifests.values()) == 57
    options = {"seed": 0, "shard_samples": 8, "on_bad_image": "skip"}
    assert shard_images(str(folder), str(tmp_path / "again"), check=check, **options) == manifests
    assert content(LocalStore(str(tmp_path / "again"))) == content(LocalStore(str(tmp_path / "skipped")))
    with pytest.raises(InputError, match="another request"):
        shard_images(
            str(folder), str(tmp_path / "again"), check={"quick": "decode", "decode": "quick"}[check], **options
        )


def test_shards_are_cut_by_size_too(tmp_path: Path) -> None:
    items = [
        SampleRecord(key=f"{i}", fields={"png": bytes(size)}, position=i + 1)
        for i, size in enumerate([40_000, 70_000, 10_000, 300_000, 5, 5, 5])
    ]
    manifest = write_shards(LocalStore(str(tmp_path)), items, shard_samples=3, shard_bytes=130_000)
    assert [entry.samples for entry in manifest.shards] == [3, 1, 3]
    assert all(entry.bytes < 150_000 for entry in manifest.shards if entry.samples > 1)


def test_a_job_goes_on_where_its_journal_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.shards.writer._JOURNAL_S", 0.0)
    asked: list[int] = []
    refused = Rejection(name="x", reason="y")

    def source(stop: int) -> Callable[[int], Iterator[SampleRecord | Rejection]]:
        def from_position(start: int) -> Iterator[SampleRecord | Rejection]:
            asked.append(start)
            for record in records(25)[start:]:
                if record.position == stop:
                    raise StorageError("the source is gone")
                if record.position == 14:
                    yield refused
                yield record

        return from_position

    store, whole = LocalStore(str(tmp_path / "broken")), LocalStore(str(tmp_path / "whole"))
    with pytest.raises(StorageError):
        SetWriter(store, FACTS, shard_samples=4).write(source(stop=19))
    writer = SetWriter(store, FACTS, shard_samples=4)
    assert writer.done == 16
    manifest = writer.write(source(stop=99))
    assert asked == [0, 16] and manifest is not None and manifest.rejected == [refused]
    SetWriter(whole, FACTS, shard_samples=4).write(source(stop=99))
    assert content(store) == content(whole)


@given(order=st.permutations([1, 2, 3, 4]), parts=st.sampled_from([4]), max_nodes=st.sampled_from([None, 120]))
@settings(max_examples=3, deadline=None)
def test_parts_give_the_same_bytes_as_one_worker(order: list[int], parts: int, max_nodes: int | None) -> None:
    options = {"seed": 0, "shard_samples": 5, "image_size": 16, "channels": (8,), "fc_dims": (32,)}
    with TemporaryDirectory() as folder:
        for number in order:
            manifests = shard_deepnets(
                ["val"], f"{folder}/parts", count=27, max_nodes=max_nodes, part=Part(number, parts), **options
            )
            assert ("val" in manifests) == (number == order[-1])
        shard_deepnets(["val"], f"{folder}/whole", count=27, max_nodes=max_nodes, **options)
        assert content(LocalStore(f"{folder}/parts")) == content(LocalStore(f"{folder}/whole"))


@pytest.mark.parametrize("text", ["0/3", "4/3", "x", "1", "1/", "-1/2"])
def test_bad_parts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="part"):
        Part.parse(text)


def test_a_shard_that_vanished_is_written_again(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    manifest = write_shards(store, records(12), shard_samples=4)
    before = content(store)
    store.delete(MANIFEST_NAME)
    store.delete(manifest.shards[1].name)
    assert write_shards(store, records(12), shard_samples=4) == manifest and content(store) == before


def test_architecture_job_counts_nodes_and_passes_over_large_graphs(tmp_path: Path) -> None:
    options = {"seed": 0, "shard_samples": 4, "image_size": 16, "channels": (8,), "fc_dims": (32,)}
    manifests = shard_deepnets(["deep", "predefined"], str(tmp_path), count=5, **options)
    assert [entry.samples for entry in manifests["deep"].shards] == [4, 1]
    assert manifests["predefined"].samples == 2
    assert all(entry.nodes > 0 and entry.parameters > 0 for entry in manifests["deep"].shards)
    small = shard_deepnets(["train"], str(tmp_path), count=6, max_nodes=100, **options)["train"]
    assert small.samples == 6 and sum(entry.nodes for entry in small.shards) <= 600
    with pytest.raises(InputError, match="tset"):
        shard_deepnets(["tset"], str(tmp_path), count=1, **options)


KILLED_JOB = """
import os, sys, time
from pipelines.shards import generate
from pipelines.shards.jobs import shard_deepnets
from pipelines.storage import LocalStore
if "processes" in sys.argv:
    generate.cores, generate._WORTH_PROCESSES, generate._BLOCK = lambda: 2, 1, 5
if "stop" in sys.argv:  # when the fourth shard is there
    write = LocalStore.write
    def write_and_stop(self, key, *rest):
        write(self, key, *rest)
        while key.endswith("000004.tar"):
            time.sleep(1)
    LocalStore.write = write_and_stop
shard_deepnets(["train"], sys.argv[1], count=100, seed=0, shard_samples=5, image_size=16, channels=(8,), fc_dims=(32,))
"""


def test_kill_nine_at_any_moment_changes_nothing(s3: str, tmp_path: Path) -> None:
    """Kill it at some shards in a folder, and, where the store stops it, between the last shard and the manifest."""
    command = [sys.executable, "-c", KILLED_JOB]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stderr=subprocess.DEVNULL)
    whole = content(LocalStore(str(tmp_path / "whole" / "train")))
    broken = tmp_path / "broken" / "train"
    for shards in (1, 11, 19):
        job = subprocess.Popen([*command, str(broken.parent)], stderr=subprocess.DEVNULL)
        while job.poll() is None and len(list(broken.glob("*.tar"))) < shards:
            time.sleep(0.002)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
    subprocess.run([*command, str(broken.parent)], check=True, stderr=subprocess.DEVNULL)
    assert content(LocalStore(str(broken))) == whole and len(list(broken.iterdir())) == len(whole)

    with proxy(os.environ["AWS_ENDPOINT_URL"]) as running:
        environment = {**os.environ, "AWS_ENDPOINT_URL": running.endpoint}
        running.fault = lambda r: "hang-before" if r.method == "PUT" and r.path.endswith(MANIFEST_NAME) else None
        job = subprocess.Popen([*command, s3], stderr=subprocess.DEVNULL, env=environment)
        assert running.hanging.wait(60)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        running.released.set()
        store = open_store(f"{s3}/train")
        left = set(store.list())
        assert MANIFEST_NAME not in left and len(left) == len(whole)  # all shards, and the journal
        running.fault = lambda r: None
        subprocess.run([*command, s3], check=True, stderr=subprocess.DEVNULL, env=environment)
    assert content(store) == whole


@pytest.mark.integration
def test_kill_nine_of_a_job_with_processes_takes_them_along(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_JOB]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stderr=subprocess.DEVNULL)
    broken = tmp_path / "broken" / "train"
    job = subprocess.Popen([*command, str(broken.parent), "processes", "stop"], stderr=subprocess.DEVNULL)
    while job.poll() is None and not list(broken.glob("*000004.tar")):
        time.sleep(0.02)
    processes = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    assert len(processes) >= 2 and len(list(broken.glob("*.tar"))) < 20
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    again = subprocess.run([*command, str(broken.parent), "processes"], stderr=subprocess.PIPE, text=True)
    assert again.returncode == 0, again.stderr
    whole = content(LocalStore(str(tmp_path / "whole" / "train")))
    assert content(LocalStore(str(broken))) == whole and len(list(broken.iterdir())) == len(whole)
