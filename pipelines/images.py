"""Image sources: what can be sharded, and in which splits."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from ghn.errors import InputError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_TEST_FRACTION = 0.2
_VAL_FRACTION = 0.1
Augmentation = Literal["none", "shift", "crop_flip"]


@dataclass(frozen=True, kw_only=True)
class ImageItem:
    """One image of a source: where it is, its class, and how to get its encoded bytes."""

    name: str
    label: int
    extension: str
    load: Callable[[], bytes]


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """All images of a source in their splits.

    Attributes:
        name: for the manifest; never a path of this machine.
        classes: class names in label order.
        splits: train, val and test items, each in a seeded random order.
        digest: SHA-256 of the list of images.

    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, list[ImageItem]]
    digest: str


def open_source(source: str, *, seed: int, image_size: int | None = None, limit: int | None = None) -> ImageSource:
    """Open ``digits``, a folder or a zip with class folders.

    Folders and zips may have ``train``, ``val`` and ``test`` above the class folders; a missing test split is a fifth of
    the images and a missing validation split a tenth of the training images, chosen by seed.

    Args:
        source: ``digits`` (scikit-learn's scanned digits) or a path.
        seed: of the splits and of the order.
        image_size: pixels to which images are resized; ``None`` keeps the original bytes (digits: 16).
        limit: use only so many images in all.

    Raises:
        InputError: if nothing is there, it holds no images, or it has fewer than two classes.

    """
    if source == "digits":
        labelled = [("", item) for item in _digits(image_size or 16)]
        classes: tuple[str, ...] = tuple(str(digit) for digit in range(10))
        name = "digits"
    else:
        path = Path(source)
        if not path.exists():
            raise InputError(
                f"image source {source} does not exist; give `digits`, or a folder or zip with class folders"
            )
        files = _zip_files(path) if path.is_file() else _folder_files(path)
        name = path.name
        labelled, classes = _classify(files, source, image_size)
    return _split(name, labelled, classes, seed=seed, limit=limit)


def _digits(size: int) -> list[ImageItem]:
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    items = []
    for number, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):

        def load(pixels: Any = pixels) -> bytes:
            image = Image.fromarray(np.uint8(pixels * 255 / 16)).resize((size, size), Image.Resampling.BILINEAR)
            return _encode_png(image.convert("RGB"))

        items.append(ImageItem(name=f"digit-{number}", label=int(label), extension="png", load=load))
    return items


def _folder_files(root: Path) -> list[tuple[PurePosixPath, Callable[[], bytes]]]:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return [(PurePosixPath(path.relative_to(root).as_posix()), path.read_bytes) for path in paths]


def _zip_files(path: Path) -> list[tuple[PurePosixPath, Callable[[], bytes]]]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"image source {path.name} is not a readable zip: {error}") from error
    names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    return [(PurePosixPath(name), functools.partial(archive.read, name)) for name in names]


def _classify(
    files: Sequence[tuple[PurePosixPath, Callable[[], bytes]]], source: str, image_size: int | None
) -> tuple[list[tuple[str, ImageItem]], tuple[str, ...]]:
    """Return (split or "", item) for each image, and the class names."""
    images = [(path, load) for path, load in files if path.suffix.lower() in EXTENSIONS]
    if not images:
        raise InputError(f"image source {source} holds no images ({', '.join(sorted(EXTENSIONS))}) in class folders")
    while len({path.parts[0] for path, _ in images}) == 1 and len(images[0][0].parts) > 2:
        if images[0][0].parts[0].lower() in _SPLIT_NAMES:
            break
        images = [(PurePosixPath(*path.parts[1:]), load) for path, load in images]  # one folder around everything
    found = []
    for path, load in images:
        split = _SPLIT_NAMES.get(path.parts[0].lower(), "") if len(path.parts) > 2 else ""
        inner = path.parts[1:] if split else path.parts
        if len(inner) < 2:
            raise InputError(f"image {path} in {source} lies in no class folder; use <class>/<image>")
        found.append((split, inner[0], path, load))
    classes = tuple(sorted({name for _, name, _, _ in found}))
    if len(classes) < 2:
        raise InputError(f"image source {source} has one class folder ({classes[0]!r}); at least two are needed")
    number = {name: i for i, name in enumerate(classes)}
    labelled = []
    for split, name, path, load in found:
        extension = "png" if image_size else path.suffix.lower().removeprefix(".")
        checked = _checked(load, str(path), source, image_size)
        labelled.append((split, ImageItem(name=str(path), label=number[name], extension=extension, load=checked)))
    return labelled, classes


def _checked(load: Callable[[], bytes], name: str, source: str, image_size: int | None) -> Callable[[], bytes]:
    """Load an image and prove that it decodes, so that no unreadable one ever reaches a shard."""

    def load_checked() -> bytes:
        from PIL import Image, UnidentifiedImageError

        try:
            content = load()
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                if image_size:
                    return _encode_png(fit(image.convert("RGB"), image_size))
        except (UnidentifiedImageError, OSError, ValueError, zipfile.BadZipFile, RuntimeError) as error:
            raise InputError(f"image {name} in {source} can not be read ({error}); repair or remove it") from error
        return content

    return load_checked


def _split(
    name: str, labelled: Sequence[tuple[str, ImageItem]], classes: tuple[str, ...], *, seed: int, limit: int | None
) -> ImageSource:
    listing = json.dumps([[split, item.name, item.label] for split, item in labelled])
    order = np.random.default_rng([seed, 0]).permutation(len(labelled))[:limit]
    chosen = [labelled[i] for i in order]
    given = {split for split, _ in chosen}
    splits: dict[str, list[ImageItem]] = {
        split: [item for where, item in chosen if (where or "train") == split] for split in SPLITS
    }
    for split, fraction in (("test", _TEST_FRACTION), ("val", _VAL_FRACTION)):
        if split not in given:
            count = max(1, round(fraction * len(splits["train"])))
            splits[split], splits["train"] = splits["train"][:count], splits["train"][count:]
    for split, items in splits.items():
        if not items:
            raise InputError(f"image source {name} leaves no images for split {split!r} ({len(chosen)} in all)")
    return ImageSource(name=name, classes=classes, splits=splits, digest=hashlib.sha256(listing.encode()).hexdigest())


def _encode_png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def fit(image: Any, size: int) -> Any:
    """Resize the shorter side to ``size`` and crop the centre."""
    from PIL import Image

    width, height = image.size
    if (width, height) == (size, size):
        return image
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
