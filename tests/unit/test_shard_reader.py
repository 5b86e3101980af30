"""`pipelines.shards.reader`: every sample once, in one order, by any number of readers; damage is named."""

from __future__ import annotations

import io
import itertools
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from webdataset.tariterators import group_by_keys, tar_file_expander

from ghn.errors import DataError
from pipelines.shards.dataset import ShardDataset
from pipelines.shards.manifest import Manifest
from pipelines.shards.order import epoch_order, shuffle_quality
from pipelines.shards.reader import ReaderState, ShardReader, read_shard
from pipelines.shards.tar import read_samples
from pipelines.storage import LocalStore, ReadCache
from tests.shard_sets import keys, records, write_shards


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "swap"])
def test_damaged_shards_are_named(damage: str, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    manifest = write_shards(store, records(20), shard_samples=10)
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


@pytest.fixture(scope="module")
def big_set(tmp_path_factory) -> tuple[LocalStore, Manifest]:
    store = LocalStore(str(tmp_path_factory.mktemp("set")))
    return store, write_shards(store, records(47), shard_samples=5)


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


@given(
    seed=st.integers(0, 9),
    window=st.integers(1, 4),
    lanes=st.integers(1, 5),
    sessions=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=4
    ),
)
@settings(max_examples=40, deadline=None)
def test_any_ranks_and_workers_take_up_what_others_left(big_set, seed: int, window: int, lanes: int, sessions) -> None:
    """Each session has its own ranks, workers, batch and steps; together they read what one reader would have read."""
    store, manifest = big_set
    options = {"seed": seed, "window": window, "lanes": lanes}
    total = sum(ranks * batch * steps for ranks, _, batch, steps in sessions)
    alone = keys(ShardReader(store, "images", **options).take(total))
    state, read = ReaderState(manifest=manifest.digest(), epoch=0, position=0), []
    for ranks, workers, batch, steps in sessions:
        streams = []
        for rank in range(ranks):
            readers = [
                ShardReader(
                    store, "images", rank=rank + ranks * worker, world_size=ranks * workers, prefetch=worker, **options
                )
                for worker in range(workers)
            ]
            for reader in readers:
                reader.restore(state)
            streams.append([reader.samples() for reader in readers])
        for sample in range(batch * steps):  # every rank makes the same steps
            read += [next(workers[sample % len(workers)])["__key__"] for workers in streams]
        epochs, position = divmod(state.position + ranks * batch * steps, manifest.samples)
        state = ReaderState(manifest=manifest.digest(), epoch=state.epoch + epochs, position=position)
    assert read == alone
    assert len(set(alone[:47])) == min(total, 47)


def test_every_rank_knows_the_common_position(big_set) -> None:
    store, _ = big_set
    readers = [ShardReader(store, "images", seed=0, rank=rank, world_size=3) for rank in range(3)]
    batches = [reader.take(20) for reader in readers]
    assert len({reader.state() for reader in readers}) == 1
    assert (readers[0].epoch, readers[0].position) == (1, 13)
    merged = [batches[i % 3][i // 3]["__key__"] for i in range(60)]
    assert merged == keys(ShardReader(store, "images", seed=0).take(60))


def test_a_rank_fetches_only_the_shards_of_its_lanes(big_set) -> None:
    store, manifest = big_set
    fetched = []
    for rank in range(2):
        reader = ShardReader(store, "images", seed=0, window=1, lanes=4, rank=rank, world_size=2, prefetch=0)
        for _ in itertools.islice(reader.samples(), 16):
            pass
        fetched.append(reader.metrics.shards)
    assert sum(fetched) <= len(manifest.shards)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_the_same_order(big_set, workers: int) -> None:
    store, _ = big_set
    alone = keys(ShardReader(store, "images", seed=3).take(70))
    folder = Path(store.root)
    options = {"rank": 1, "world_size": 2, "seed": 3, "transform": _key}
    first = ShardDataset(str(folder.parent), folder.name, "images", **options)
    loader = DataLoader(first, batch_size=None, num_workers=workers)
    taken = list(itertools.islice(loader, 20))
    rest = ShardDataset(str(folder.parent), folder.name, "images", state=first.state_after(20), **options)
    taken += list(itertools.islice(DataLoader(rest, batch_size=None, num_workers=1), 15))
    assert taken == alone[1::2]


def _key(sample: dict[str, object]) -> object:
    return sample["__key__"]


def test_shuffling_is_measured() -> None:
    counts = [100] * 50
    stored = np.arange(5000)
    assert shuffle_quality(stored) == (0.0, 1 / 5000)
    perfect = shuffle_quality(np.random.default_rng(0).permutation(5000))
    assert perfect.travel == pytest.approx(1 / 3, abs=0.02) and perfect.neighbours == pytest.approx(1 / 3, abs=0.02)
    spread = [
        shuffle_quality(epoch_order(counts, seed=0, epoch=0, window=window, lanes=lanes)).neighbours
        for window, lanes in ((1, 1), (8, 1), (8, 4), (50, 1))
    ]
    assert spread == sorted(spread) and spread[-1] == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_bad_shards_are_skipped_and_counted_if_asked(damage: str, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    manifest = write_shards(store, records(20), shard_samples=5)
    victim = tmp_path / manifest.shards[1].name
    good = {key for key in keys(records_as_samples(20)) if not 5 <= int(key) < 10}
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:700] if damage == "truncate" else victim.read_bytes() + b"x")
    reader = ShardReader(store, "images", seed=0, on_bad_shard="skip")
    epoch = keys(reader.take(20))
    assert set(epoch) == good and reader.metrics.bad_shards == [victim.name] and reader.metrics.replaced == 5
    again = ShardReader(store, "images", seed=0, on_bad_shard="skip", prefetch=0)
    assert keys(again.take(20)) == epoch  # whoever finds it bad gives the same in its place
    for entry in manifest.shards:
        (tmp_path / entry.name).unlink(missing_ok=True)
    with pytest.raises(DataError, match="every shard of"):
        ShardReader(store, "images", seed=0, on_bad_shard="skip").take(1)


def records_as_samples(count: int) -> list[dict[str, object]]:
    return [{"__key__": record.key} for record in records(count)]


def test_fields_are_never_unpickled(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    bomb = pickle.dumps(tmp_path)
    items = [type(record)(key=record.key, fields={"pyd": bomb}, position=1) for record in records(1)]
    write_shards(store, items, shard_samples=1)
    assert ShardReader(store, "images", seed=0).take(1) == [{"__key__": "0000", "pyd": bomb}]


def test_metrics_count_what_was_read(big_set) -> None:
    store, manifest = big_set
    reader = ShardReader(store, "images", seed=0)
    reader.take(47)
    metrics = reader.metrics
    assert (metrics.samples, metrics.shards, metrics.bytes) == (47, 10, sum(entry.bytes for entry in manifest.shards))
    assert metrics.fetch_s > 0 and metrics.stall_s >= 0
    reader.take(47)
    assert metrics.samples == 94 and metrics.shards == 10  # a small set stays in memory


def test_a_cache_keeps_what_was_read_within_its_limit(big_set, tmp_path: Path) -> None:
    store, manifest = big_set
    sizes = [entry.bytes for entry in manifest.shards]
    cache = ReadCache(tmp_path / "cache", sum(sizes))
    expected = keys(ShardReader(store, "images", seed=0).take(47))
    for misses, hits in ((10, 0), (10, 10)):
        assert keys(ShardReader(store, "images", seed=0, cache=cache).take(47)) == expected
        assert (cache.misses, cache.hits) == (misses, hits)
    next((tmp_path / "cache").iterdir()).write_bytes(b"damaged")
    assert keys(ShardReader(store, "images", seed=0, cache=cache).take(47)) == expected
    small = ReadCache(tmp_path / "small", max(sizes) + min(sizes))
    ShardReader(store, "images", seed=0, cache=small).take(47)
    assert 0 < sum(file.stat().st_size for file in (tmp_path / "small").iterdir()) <= small.limit


def test_order_depends_on_seed_and_epoch(big_set) -> None:
    store, manifest = big_set
    order = keys(ShardReader(store, "images", seed=0).take(94))
    assert order[:47] != order[47:] and order != keys(ShardReader(store, "images", seed=1).take(94))
    assert keys(ShardReader(store, "images", seed=0).in_order()) == keys_of(47)
    assert len(read_shard(store, manifest.shards[0])) == 5


def test_a_state_of_another_set_is_refused(big_set, tmp_path: Path) -> None:
    store, _ = big_set
    write_shards(LocalStore(str(tmp_path)), records(9), shard_samples=5)
    state = ShardReader(LocalStore(str(tmp_path)), "images", seed=0).state()
    with pytest.raises(DataError, match="not the shard set that the checkpoint was trained on"):
        ShardReader(store, "images", seed=0).restore(state)


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
    assert list(read_samples(stream.getvalue(), "x")) == expected
