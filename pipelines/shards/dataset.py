"""A shard set for torch's ``DataLoader``: worker processes, the same order, exact resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from pipelines.shards.reader import Kind, ReaderState, Sample, ShardReader, open_reader


class ShardDataset(IterableDataset[Any]):
    """Endless samples of one rank, the same in the same order with any number of workers.

    Give it to ``DataLoader(dataset, batch_size=None, num_workers=W)``: worker w yields the rank's samples w, w + W, ...
    and the loader takes the workers in turns. Samples are transformed in the workers.

    Args:
        root: of the shard sets.
        split: which of them.
        kind: ``images`` or ``deepnets``.
        transform: from a sample to what is yielded, e.g. decoding.
        state: where to go on; the beginning if ``None``.
        rank: of this process, from 0.
        world_size: of all processes.
        options: of :class:`~pipelines.shards.reader.ShardReader`: ``seed``, ``window``, ``lanes`` and others.

    """

    def __init__(
        self,
        root: str,
        split: str,
        kind: Kind,
        *,
        transform: Callable[[Sample], Any] | None = None,
        state: ReaderState | None = None,
        rank: int = 0,
        world_size: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        self.rank, self.world_size, self.start = rank, world_size, state
        self._transform = transform
        self._open = (root, split, kind)
        self._options = options
        self._reader(0, 1)  # errors now, not in a worker

    def _reader(self, worker: int, workers: int) -> ShardReader:
        reader = open_reader(
            *self._open,
            rank=self.rank + self.world_size * worker,
            world_size=self.world_size * workers,
            **self._options,
        )
        if self.start is not None:
            reader.restore(self.start)
        return reader

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        reader = self._reader(info.id, info.num_workers) if info else self._reader(0, 1)
        samples = reader.samples()
        return samples if self._transform is None else map(self._transform, samples)

    def state_after(self, taken: int) -> ReaderState:
        """Return where every rank is when each of them was given ``taken`` samples since the start."""
        reader = self._reader(0, 1)
        epochs, position = divmod(reader.position + taken * self.world_size, reader.manifest.samples)
        return ReaderState(manifest=reader.manifest.digest(), epoch=reader.epoch + epochs, position=position)
