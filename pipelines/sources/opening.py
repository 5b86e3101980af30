"""From a source's name to its images in their splits."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ghn.errors import InputError
from pipelines.sources import digits
from pipelines.sources.cifar import find_cifar, list_cifar
from pipelines.sources.files import Files
from pipelines.sources.folders import list_folders
from pipelines.sources.imagenet import is_imagenet, list_imagenet
from pipelines.sources.images import Check, checked, resized
from pipelines.sources.listing import SPLITS, UNASSIGNED, Listing

_TEST_FRACTION = 0.2
VAL_FRACTION = 0.1
_TARS = (".tar", ".tar.gz", ".tgz")


class UnreadableImageError(InputError):
    """An image that can not be read; the message names it and says why."""

    def __init__(self, name: str, source: str, reason: str) -> None:
        super().__init__(
            f"image {name} in {source} can not be read ({reason}); repair or remove it, or leave such images out with "
            "--on-bad-image skip"
        )
        self.name, self.reason = name, reason


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """All images of a source in their splits.

    Attributes:
        listing: all images.
        splits: for each split indices into the listing, in a seeded random order.
        digest: SHA-256 of names, classes and given splits.
        image_size: pixels to which images are resized, or ``None``.
        check: how thoroughly images are checked that are kept as they are.

    """

    listing: Listing
    splits: dict[str, np.ndarray]
    digest: str
    image_size: int | None
    check: Check

    def load(self, index: int) -> tuple[bytes, str]:
        """Return an image's encoded bytes and extension; raises :class:`UnreadableImageError`."""
        listing = self.listing
        try:
            content, extension = listing.load(index)
            if self.image_size:
                return resized(content, self.image_size), "png"
            return checked(content, self.check), extension
        except Exception as error:  # decoders fail in many ways
            raise UnreadableImageError(listing.names[index], listing.name, _reason(error)) from None


def open_source(
    source: str,
    *,
    seed: int,
    image_size: int | None = None,
    limit: int | None = None,
    val_fraction: float = VAL_FRACTION,
    check: Check = "decode",
) -> ImageSource:
    """Open an image source: nothing but names is read.

    A source is ``digits`` (scikit-learn's scanned digits), a folder or zip with class folders (perhaps below ``train``,
    ``val`` and ``test``), ImageNet as distributed, or an official CIFAR archive. A missing test split is a fifth of the images;
    a missing validation split is taken from the training images, by seed, or as published for CIFAR.

    Args:
        source: as above.
        seed: of the splits and of the order.
        image_size: pixels to which images are resized; ``None`` keeps the original bytes (digits: 16).
        limit: use only so many images in all.
        val_fraction: of the training images, where no validation split is given; 0 for none.
        check: see :func:`pipelines.sources.images.checked`.

    Raises:
        InputError: if nothing is there, it holds no images, or it has fewer than two classes.

    """
    listing = digits.list_digits(image_size or digits.SIZE) if source == "digits" else _list(Path(source))
    digest = hashlib.sha256()
    for name, label, split in zip(listing.names, listing.labels.tolist(), listing.given.tolist(), strict=True):
        digest.update(f"{split}\0{label}\0{name}\n".encode())
    splits = _split(listing, seed=seed, limit=limit, val_fraction=val_fraction)
    return ImageSource(listing=listing, splits=splits, digest=digest.hexdigest(), image_size=image_size, check=check)


def _reason(error: Exception) -> str:
    """Return what is wrong, the same on every machine: it becomes part of the manifest."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is no image of a known format"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "it", str(error)) or type(error).__name__


def _list(path: Path) -> Listing:
    if not path.exists():
        raise InputError(
            f"image source {path} does not exist; give `digits`, a folder or zip with class folders, ImageNet as "
            "distributed, or a CIFAR archive"
        )
    is_tar = path.is_file() and path.name.endswith(_TARS)
    files = None if is_tar else Files(path)
    cifar = find_cifar(path, files)
    if cifar is not None:
        return list_cifar(path, cifar)
    if files is None:
        raise InputError(f"{path.name} is a tar, but no CIFAR archive; unpack it, or make a zip with class folders")
    return list_imagenet(files) if is_imagenet(files) else list_folders(files)


def _split(listing: Listing, *, seed: int, limit: int | None, val_fraction: float) -> dict[str, np.ndarray]:
    order = np.random.default_rng([seed, 0]).permutation(len(listing.names))[:limit]
    given = listing.given[order]
    splits = {name: order[given == i] for i, name in enumerate(SPLITS)}
    splits["train"] = order[(given == SPLITS.index("train")) | (given == UNASSIGNED)]
    wanted = ["train", "test"]
    if not len(splits["test"]):
        splits["test"], splits["train"] = _take(splits["train"], _TEST_FRACTION)
    if val_fraction or len(splits["val"]):
        wanted.append("val")
    if val_fraction and not len(splits["val"]):
        if listing.validation == "last":
            count = max(1, round(val_fraction * len(splits["train"])))
            last = np.sort(splits["train"])[-count:]
            chosen = np.isin(splits["train"], last)
            splits["val"], splits["train"] = splits["train"][chosen], splits["train"][~chosen]
        else:
            splits["val"], splits["train"] = _take(splits["train"], val_fraction)
    for name in wanted:
        if not len(splits[name]):
            raise InputError(f"image source {listing.name} leaves no images for split {name!r} ({len(order)} in all)")
    return {name: splits[name] for name in SPLITS if name in wanted}


def _take(indices: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    count = max(1, round(fraction * len(indices)))
    return indices[:count], indices[count:]
