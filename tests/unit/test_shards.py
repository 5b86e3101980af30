"""Shard sets on a real S3 server and in folders: same bytes, resumable, verified, exactly once."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from ghn.errors import DataError, InputError, StorageError
from pipelines.shards.jobs import shard_deepnets, shard_images
from pipelines.shards.manifest import MANIFEST_NAME, Manifest, read_manifest
from pipelines.shards.reader import ShardReader, read_shard
from pipelines.shards.tar import read_samples
from pipelines.shards.writer import SampleRecord, write_shards
from pipelines.storage import LocalStore, Store, open_store
from tests.unit.test_images import make_folder

FACTS = {"kind": "images", "split": "train", "source": "test", "seed": 0, "classes": ["a", "b"], "request": {"n": 1}}


def records(count: int) -> list[SampleRecord]:
    return [SampleRecord(key=f"{i:04d}", fields={"png": bytes([i % 256]) * i, "cls": b"1"}) for i in range(count)]


def keys(samples) -> list[str]:
    return [sample["__key__"] for sample in samples]


def content(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list()}


def test_folder_and_s3_hold_the_same_bytes(s3: str, tmp_path: Path) -> None:
    stores = [open_store(s3), open_store(str(tmp_path / "set"))]
    for store in stores:
        manifest = write_shards(store, records(25), shard_samples=10, facts=FACTS)
        assert [shard.samples for shard in manifest.shards] == [10, 10, 5]
        assert read_manifest(store, "images") == manifest
    assert content(stores[0]) == content(stores[1])
    assert set(content(stores[0])) == {MANIFEST_NAME, *(shard.name for shard in manifest.shards)}


def test_plain_tar_and_webdataset_can_read_a_shard(tmp_path: Path) -> None:
    import webdataset

    manifest = write_shards(LocalStore(str(tmp_path)), records(4), shard_samples=10, facts=FACTS)
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
        write_shards(store, breaking(), shard_samples=10, facts=FACTS)
    with pytest.raises(InputError, match=r"no shard set .*ghn shard images"):
        read_manifest(store, "images")
    first = Path(store.root, "images-train-000000.tar")
    written = first.stat().st_mtime_ns
    write_shards(store, records(25), shard_samples=10, facts=FACTS)
    write_shards(whole, records(25), shard_samples=10, facts=FACTS)
    assert content(store) == content(whole)
    assert first.stat().st_mtime_ns == written  # what was there is left alone


def test_leftovers_of_another_job_are_removed(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.write("images-train-000009.tar", b"left behind")
    write_shards(store, records(3), shard_samples=10, facts=FACTS)
    assert set(store.list()) == {MANIFEST_NAME, "images-train-000000.tar"}


def test_a_finished_set_is_never_overwritten_by_another_request(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    manifest = write_shards(store, records(5), shard_samples=2, facts=FACTS)
    assert write_shards(store, iter(()), shard_samples=2, facts=FACTS) == manifest
    with pytest.raises(InputError, match=r"another seed \(0, asked for 1\)"):
        write_shards(store, records(5), shard_samples=2, facts={**FACTS, "seed": 1})


def test_an_empty_source_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no samples"):
        write_shards(LocalStore(str(tmp_path)), [], shard_samples=2, facts=FACTS)
    assert not any(tmp_path.rglob("*"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "swap"])
def test_damaged_shards_are_named(damage: str, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    manifest = write_shards(store, records(20), shard_samples=10, facts=FACTS)
    victim = tmp_path / manifest.shards[1].name
    data = victim.read_bytes()
    if damage == "truncate":
        victim.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        victim.write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
    elif damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes((tmp_path / manifest.shards[0].name).read_bytes())
    reader = ShardReader(store, "images", seed=0)
    with pytest.raises(DataError, match=manifest.shards[1].name):
        reader.take(20)


def test_damaged_or_foreign_manifests_are_named(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    write_shards(store, records(3), shard_samples=10, facts=FACTS)
    with pytest.raises(InputError, match="holds images shards, but deepnets"):
        read_manifest(store, "deepnets")
    store.write(MANIFEST_NAME, store.read(MANIFEST_NAME)[:50])
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        read_manifest(store, "images")


@pytest.fixture(scope="module")
def big_set(tmp_path_factory) -> tuple[LocalStore, Manifest]:
    store = LocalStore(str(tmp_path_factory.mktemp("set")))
    return store, write_shards(store, records(47), shard_samples=5, facts=FACTS)


@given(seed=st.integers(0, 99), window=st.integers(1, 12), stops=st.lists(st.integers(0, 70), max_size=4))
@settings(max_examples=40, deadline=None)
def test_resuming_anywhere_gives_exactly_the_rest(big_set, seed: int, window: int, stops: list[int]) -> None:
    store, _ = big_set
    straight = keys(ShardReader(store, "images", seed=seed, window=window).take(141))
    assert all(sorted(straight[e * 47 : (e + 1) * 47]) == sorted(keys_of(47)) for e in range(3))  # once per epoch
    pieces: list[str] = []
    state = None
    for stop in [*stops, 141]:
        reader = ShardReader(store, "images", seed=seed, window=window)
        if state is not None:
            reader.restore(state)
        pieces += keys(reader.take(min(stop, 141 - len(pieces))))
        state = reader.state()
    assert pieces == straight


def keys_of(count: int) -> list[str]:
    return [f"{i:04d}" for i in range(count)]


def test_order_depends_on_seed_and_epoch(big_set) -> None:
    store, manifest = big_set
    order = keys(ShardReader(store, "images", seed=0).take(94))
    assert order[:47] != order[47:] and order != keys(ShardReader(store, "images", seed=1).take(94))
    assert keys(ShardReader(store, "images", seed=0).in_order()) == keys_of(47)
    assert len(read_shard(store, manifest.shards[0])) == 5


def test_a_state_of_another_set_is_refused(big_set, tmp_path: Path) -> None:
    store, _ = big_set
    write_shards(LocalStore(str(tmp_path)), records(9), shard_samples=5, facts=FACTS)
    state = ShardReader(LocalStore(str(tmp_path)), "images", seed=0).state()
    with pytest.raises(DataError, match="not the shard set that the checkpoint was trained on"):
        ShardReader(store, "images", seed=0).restore(state)


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
import sys
from pipelines.shards.jobs import shard_deepnets
shard_deepnets(["train"], sys.argv[1], count=400, seed=0, shard_samples=10, image_size=16, channels=(8,), fc_dims=(32,))
"""


def test_kill_nine_at_any_moment_changes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_JOB]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, stderr=subprocess.DEVNULL)
    broken = tmp_path / "broken" / "train"
    for shards in (1, 9, 25, 39):
        job = subprocess.Popen([*command, str(broken.parent)], stderr=subprocess.DEVNULL)
        while job.poll() is None and len(list(broken.glob("*.tar"))) < shards:
            time.sleep(0.002)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
    subprocess.run([*command, str(broken.parent)], check=True, stderr=subprocess.DEVNULL)
    whole = LocalStore(str(tmp_path / "whole" / "train"))
    finished = {key: data for key, data in content(LocalStore(str(broken))).items() if not key.startswith(".")}
    assert finished == content(whole)


def test_storage_errors_name_the_address_and_the_next_step(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="bucket 'nobody' does not exist"):
        open_store("s3://nobody/x").read("key")
    with pytest.raises(StorageError, match="bucket 'nobody' does not exist"):
        open_store("s3://nobody/x").size("key")
    with pytest.raises(FileNotFoundError):
        open_store(s3).read("missing")
    assert open_store(s3).size("missing") is None
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="check the credentials"):
        open_store(s3).write("key", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"can not use the object store at http://127.0.0.1:9"):
        open_store(s3).read("key")


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "s3:///x"])
def test_bad_addresses_are_named(url: str) -> None:
    with pytest.raises(InputError, match=url):
        open_store(url)


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(str(tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        store.write("key", b"content")
    assert not any(tmp_path.iterdir())


def test_listing_goes_through_all_pages(s3: str) -> None:
    store = open_store(s3)
    for i in range(12):
        store.write(f"many/{i:02d}", b"")
    assert list(store.list("many/")) == [f"many/{i:02d}" for i in range(12)]
    store.delete("many/03")
    assert len(store.list("many/")) == 11 and io.BytesIO(store.read("many/04")).read() == b""


@given(
    files=st.lists(
        st.tuples(
            st.text("abc", min_size=1, max_size=3), st.sampled_from(["png", "cls", "seg.png"]), st.binary(max_size=1100)
        ),
        max_size=8,
        unique_by=lambda file: file[:2],
    ),
    extended=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_samples_are_read_as_webdataset_reads_them(files: list[tuple[str, str, bytes]], extended: bool) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for key, extension, data in sorted(files):
            member = tarfile.TarInfo(f"folder/{key}.{extension}")
            member.size, member.mtime = len(data), 0.5 if extended else 0  # a fraction needs an extended header
            archive.addfile(member, io.BytesIO(data))
    expanded = tar_file_expander([{"url": "x", "stream": io.BytesIO(stream.getvalue())}])
    expected = [
        {k: v for k, v in sample.items() if k not in ("__url__", "__local_path__")}
        for sample in group_by_keys(expanded)
    ]
    assert read_samples(stream.getvalue(), "x") == expected
