"""What ranks tell each other beside gradients: small facts, through gloo, with time-outs that name who does not answer."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import torch.distributed as dist

from ghn.errors import GHNError, TrainingError

_T = TypeVar("_T")
_SHORT_S = 5.0
_NAMED = re.compile(r"[Rr]anks? ([\d, ]+) failed to pass monitoredBarrier")


class Ranks:
    """All ranks of a job; every method is called by all of them in the same order.

    Args:
        timeout_s: how long to wait for a rank that does not answer. It must be longer than the slowest step of one rank.

    """

    def __init__(self, timeout_s: float) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._timeout_s = timeout_s
        self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_s))

    def gather(self, item: _T, doing: str) -> list[_T]:
        """Return every rank's item; ``doing`` says in a message what all were about to do.

        Raises:
            TrainingError: if a rank does not answer in time, or is gone.

        """
        if self.count == 1:
            return [item]
        items: list[Any] = [None] * self.count
        with self.watched(doing):
            self._meet(self._timeout_s)
            dist.all_gather_object(items, item, group=self._group)
        return items

    def from_first(self, item: _T, doing: str) -> _T:
        """Return the item of rank 0; errors as in :meth:`gather`."""
        if self.count == 1:
            return item
        items: list[Any] = [item]
        with self.watched(doing):
            dist.broadcast_object_list(items, src=0, group=self._group)
        value: _T = items[0]
        return value

    @contextlib.contextmanager
    def watched(self, doing: str) -> Iterator[None]:
        """Turn a collective operation's failure into an error that names the ranks that do not answer."""
        try:
            yield
        except GHNError:
            raise
        except RuntimeError as error:
            raise TrainingError(f"{doing}: {self._who(error)}. Run the same command again to resume") from error

    def _meet(self, timeout_s: float) -> None:
        dist.monitored_barrier(self._group, datetime.timedelta(seconds=timeout_s), wait_all_ranks=True)

    def _who(self, error: RuntimeError) -> str:
        named = _NAMED.search(str(error))
        if named is None and "onnection" not in str(error):
            try:
                self._meet(_SHORT_S)
            except RuntimeError as second:
                named, error = _NAMED.search(str(second)), second
        if named is not None:
            return f"rank {named[1]} did not answer for {self._timeout_s:g} seconds (training.timeout_s)"
        return f"rank {self.rank} lost another rank: {str(error).splitlines()[0]}"
