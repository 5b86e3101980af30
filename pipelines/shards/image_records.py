"""From the images of a source to the samples of its shards, loaded and checked by several threads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np

from ghn.errors import InputError
from pipelines.machine import cores
from pipelines.progress import emit
from pipelines.shards.manifest import Rejection
from pipelines.shards.writer import SampleRecord
from pipelines.sources.opening import ImageSource, UnreadableImageError

OnBadImage = Literal["fail", "skip"]
_GROUP = 16  # images that a thread loads at once: handing over one by one would cost more than reading a small one
_SHOWN = 10


def image_records(
    source: ImageSource, indices: np.ndarray, start: int, on_bad_image: OnBadImage
) -> Iterator[SampleRecord | Rejection]:
    """Yield the samples of a split in order, from a position on; decoding and reading take all cores.

    Raises:
        InputError: with ``fail``, if images can not be read. All others are looked at first, so that the message counts and
            the progress lists every one of them.

    """
    bad: list[Rejection] = []
    for position, result in _loaded(source, indices, start):
        if isinstance(result, Rejection):
            emit("unreadable", image=result.name, reason=result.reason)
            if on_bad_image == "skip":
                yield result
            else:
                bad.append(result)
        elif not bad:
            content, extension = result
            label = int(source.listing.labels[indices[position]])
            fields = {extension: content, "cls": str(label).encode()}
            yield SampleRecord(key=f"{position:08d}", fields=fields, position=position + 1)
    if len(bad) == 1:
        raise UnreadableImageError(bad[0].name, source.listing.name, bad[0].reason)
    if bad:
        listed = "; ".join(f"{error.name} ({error.reason})" for error in bad[:_SHOWN])
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise InputError(
            f"{len(bad)} images in {source.listing.name} can not be read: {listed}{more}; repair or remove them, or leave "
            "them out with --on-bad-image skip"
        )


def _loaded(
    source: ImageSource, indices: np.ndarray, start: int
) -> Iterator[tuple[int, tuple[bytes, str] | Rejection]]:
    """Yield (position, image or error) in order, loaded by threads in groups."""

    def load(first: int) -> list[tuple[bytes, str] | Rejection]:
        loaded: list[tuple[bytes, str] | Rejection] = []
        for index in indices[first : first + _GROUP].tolist():
            try:
                loaded.append(source.load(index))
            except UnreadableImageError as error:
                loaded.append(Rejection(name=error.name, reason=error.reason))  # the error itself holds the image
        return loaded

    threads = cores()
    with ThreadPoolExecutor(threads) as pool:
        firsts = iter(range(start, len(indices), _GROUP))
        pending: deque[Future[list[tuple[bytes, str] | Rejection]]] = deque()
        position = start
        while True:
            pending.extend(pool.submit(load, first) for first in itertools.islice(firsts, threads + 1 - len(pending)))
            if not pending:
                return
            for result in pending.popleft().result():
                yield position, result
                position += 1
