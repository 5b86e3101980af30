"""A part of a job that several processes or machines share, as in ``--part 3/16``."""

from __future__ import annotations

from dataclasses import dataclass

from ghn.errors import InputError


@dataclass(frozen=True)
class Part:
    """Part ``number`` (from 1) of ``count``."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= 99_999:
            raise InputError(f"part {self.number}/{self.count}: give a number from 1 to the count, as in 3/16")

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``3/16``."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal()):
            raise InputError(f"part {text!r}: write it as 3/16")
        return cls(int(number), int(count))

    def range_of(self, total: int) -> range:
        """Return which of so many things in a row fall to this part, next to each other."""
        return range(total * (self.number - 1) // self.count, total * self.number // self.count)
