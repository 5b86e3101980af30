"""What every format gives: a list of images without their content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "val", "test")
UNASSIGNED = -1


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All images of a source, in an order that depends on their names alone.

    A million images take some 150 MB, so everything but the names is kept in arrays, and content is loaded when asked for.

    Attributes:
        name: of the source, for the manifest; never a path of this machine.
        names: of the images, unique.
        labels: class numbers (N,) int32.
        given: for each image the index of its split in :data:`SPLITS`, or ``UNASSIGNED``; (N,) int8.
        classes: class names in label order.
        load: from an index to the encoded image and its extension (``jpg``); safe to call from several threads.
        validation: how images are chosen for validation where none are given: by seed, or the last of the training images.

    """

    name: str
    names: list[str]
    labels: np.ndarray
    given: np.ndarray
    classes: tuple[str, ...]
    load: Callable[[int], tuple[bytes, str]]
    validation: str = "random"
