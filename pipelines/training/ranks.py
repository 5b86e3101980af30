"""What ranks tell each other beside gradients, and a watch over all of them that names who does not answer.

Each rank tells a store, every few seconds, that it lives and how many joint operations it has entered. Whoever waits in a
joint operation for too long compares what all have told: a rank that tells nothing new is stopped or cut off, and one
that has entered fewer operations is what the others wait for. This does not depend on how the operation communicates.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from ghn.errors import GHNError, TrainingError
from ghn.meta_step import failure_of

_T = TypeVar("_T")
_SLACK_S = 120.0  # the process groups' own time-out comes later: its messages name nobody
_LONGEST_BEAT_S = 5.0
_ALL = 1 << 40


class Ranks:
    """All ranks of a job; every method is called by all of them in the same order. As a context it ends the watch.

    Args:
        store: of torch's process group.
        timeout_s: how long a joint operation may take; longer than the slowest step of one rank.

    """

    def __init__(self, store: Any, timeout_s: float) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_s + _SLACK_S))
        self._watch = _Watch(store, self.rank, self.count, timeout_s) if self.count > 1 else None
        self._store, self._turns = store.clone() if self.count > 1 else None, ""

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        if self._watch is not None:
            self._watch.close()

    def gather(self, item: _T, doing: str) -> list[_T]:
        """Return every rank's item; ``doing`` says in a message what all were about to do.

        Raises:
            TrainingError: if a rank is gone.

        """
        if self.count == 1:
            return [item]
        items: list[Any] = [None] * self.count
        with self.watched(doing):
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

    def turns(self, doing: str) -> Turns:
        """Return numbers from 0 to be taken by all ranks together: a rank's own number first, then who asks first gets the next.

        Args:
            doing: what for; unlike all before. All ranks must be done with the turns before these.

        """
        if self._store is not None and self._turns and self.rank == 0:
            self._store.delete_key(self._turns)
        self._turns = f"ghn/turns/{doing}"
        return Turns(self._store, self._turns, (self.rank, self.count), lambda: self.watched(doing, joint=False))

    @contextlib.contextmanager
    def watched(self, doing: str, *, joint: bool = True) -> Iterator[None]:
        """Watch over a joint operation. One that fails raises; one that takes too long ends this process with a message.

        An operation that is not ``joint`` is a question to the store, which rank 0 holds; each rank asks as often as it likes.
        """
        if self._watch is not None:
            self._watch.enter(doing, joint)
        try:
            yield
        except GHNError:
            raise
        except RuntimeError as error:
            reason = failure_of(error)
            if self.count > 1 and not reason.startswith("out of memory"):
                reason = f"lost another rank: {reason}"
            raise TrainingError(f"{doing}: rank {self.rank}: {reason}. {_AGAIN}") from error
        finally:
            if self._watch is not None:
                self._watch.leave()


class Turns:
    """Numbers that all ranks take together, each number by one of them; see :meth:`Ranks.turns`."""

    def __init__(
        self,
        store: Any,
        key: str,
        ranks: tuple[int, int],
        watched: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._store, self._key, self._watched = store, key, watched
        self._rank, self._ranks = ranks
        self._taken = 0  # behind everyone's first, where one rank is alone

    def up_to(self, count: int) -> Iterator[int]:
        """Yield this rank's numbers, less than ``count``."""
        turn = self._rank
        while turn < count:
            yield turn
            turn = self._ranks + self._take(1)

    def end(self) -> None:
        """Leave none to the other ranks but the first of each."""
        self._take(_ALL)

    def _take(self, how_many: int) -> int:
        if self._store is None:
            self._taken += how_many
            return self._taken - how_many
        with self._watched():
            after: int = self._store.add(self._key, how_many)
        return after - how_many


_AGAIN = "Run the same command again to resume"


class _Watch:
    """The thread that tells and compares."""

    def __init__(self, store: Any, rank: int, count: int, timeout_s: float) -> None:
        self._store, self._rank, self._count, self._timeout_s = store.clone(), rank, count, timeout_s
        self._beat_s = min(_LONGEST_BEAT_S, timeout_s / 4)
        self._patience_s = max(2.0, 2 * self._beat_s)
        self._entered, self._since, self._doing = 0, None, ""
        self._over = threading.Event()
        self._thread = self._asking = threading.Thread(target=self._work, name="watch", daemon=True)
        self._thread.start()

    _since: float | None

    def close(self) -> None:
        """End the thread: the interpreter aborts if it ends while a thread of its own is inside of torch's store."""
        self._over.set()
        for thread in (self._thread, self._asking):
            thread.join(self._patience_s)

    def enter(self, doing: str, joint: bool) -> None:
        self._doing = doing
        self._entered += joint
        self._since = time.monotonic()

    def leave(self) -> None:
        self._since = None

    def _work(self) -> None:
        beats = 0
        while not self._over.is_set():
            beats += 1
            self._answered(lambda beats=beats: self._store.set(_key(self._rank), f"{beats} {self._entered}"))
            since = self._since
            if since is not None and time.monotonic() - since > self._timeout_s:
                silent = self._silent()
                if self._since == since and not self._over.is_set():  # it still waits
                    self._give_up(silent)
            self._over.wait(self._beat_s)

    def _silent(self) -> Sequence[int]:
        """Return the ranks that all others wait for."""
        entered = self._entered
        first = self._answered(self._read)
        time.sleep(2.5 * self._beat_s)
        second = self._answered(self._read)
        if first is None or second is None:
            return [0]  # who holds the store does not answer
        others = [rank for rank in range(self._count) if rank != self._rank]
        return [rank for rank in others if first[rank] == second[rank]] or [
            rank for rank in others if second[rank][1] < entered
        ]

    def _read(self) -> list[tuple[int, int]]:
        keys = [_key(rank) for rank in range(self._count)]
        found = [self._store.get(key).decode().split() if self._store.check([key]) else (0, 0) for key in keys]
        return [(int(beats), int(entered)) for beats, entered in found]

    def _answered(self, ask: Any) -> Any:
        """Return what a question to the store gives, ``None`` if there is no answer soon."""
        answer: list[Any] = []

        def work() -> None:
            with contextlib.suppress(RuntimeError):
                answer.append(ask())

        self._asking = threading.Thread(target=work, daemon=True)
        self._asking.start()
        self._asking.join(self._patience_s)
        return answer[0] if answer else None

    def _give_up(self, silent: Sequence[int]) -> None:
        who = f"rank {', '.join(map(str, silent))}" if silent else "an unknown rank"
        sys.stderr.write(
            f"ghn: rank {self._rank}: {self._doing}: {who} did not answer for {self._timeout_s:g} seconds "
            f"(training.timeout_s). {_AGAIN}\n"
        )
        sys.stderr.flush()
        os._exit(TrainingError.exit_code)  # the main thread waits in the operation and can not be told


def _key(rank: int) -> str:
    return f"ghn/beat/{rank}"
