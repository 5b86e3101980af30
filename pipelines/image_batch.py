"""From samples of an image shard to a batch: decode, augment, normalize.

Batches are ``channels_last``, the order in which images are decoded and in which convolutions are quick on CPUs. Between
decoder and batch each value is touched once: small images could easily take longer to shuffle around than to decode.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ghn import compiled
from ghn.errors import DataError
from pipelines.sources.check import fit
from pipelines.sources.folders import EXTENSIONS

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 18  # values that are placed at once: they stay in a core's cache

Augmentation = Literal["none", "shift", "crop_flip"]
Decoded = tuple[np.ndarray, int]
"""Pixels (S, S, 3) uint8, and the class number."""


def decode(sample: dict[str, Any], size: int) -> Decoded:
    """Return the pixels and the class of one sample; the shorter side becomes ``size``, then the centre is cut out."""
    from PIL import Image

    extension = next((key for key in sample if key in EXTENSIONS), None)
    if extension is None or "cls" not in sample:
        raise DataError(f"sample {sample.get('__key__')} holds no image or no class; make the shard set again")
    with Image.open(io.BytesIO(sample[extension])) as image:
        pixels = np.asarray(fit(image.convert("RGB"), size))
    return pixels, int(sample["cls"])


def to_batch(
    decoded: Sequence[Decoded],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    augmentation: Augmentation = "none",
    rng: np.random.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (images (N, 3, S, S) float32, class numbers (N,)).

    Images are shifted by up to an eighth of their size (zeros come in), and for ``crop_flip`` half of them are mirrored;
    then every channel is normalized by its mean and standard deviation (of values from 0 to 1).
    """
    import torch

    n, size = len(decoded), len(decoded[0][0])
    shifts, mirrored = _draw(n, size, augmentation, rng or np.random.default_rng(0))
    scale = np.tile(np.float32(1 / (255 * np.array(std))), size)
    offset = np.tile(np.float32(-np.array(mean) / np.array(std)), size)
    images = np.empty((n, size, size * 3), dtype=np.float32)
    place = place_rows if compiled.AVAILABLE else place_images
    step = max(1, _CHUNK // (3 * size**2))
    for start in range(0, n, step):
        part = slice(start, start + step)
        pixels = np.stack([pixels for pixels, _ in decoded[part]]).reshape(-1, size, size * 3)
        place(pixels, shifts[part], mirrored[part], scale, offset, images[part])
    labels = torch.tensor([label for _, label in decoded])
    return torch.from_numpy(images).view(n, size, size, 3).permute(0, 3, 1, 2), labels


def _draw(n: int, size: int, kind: Augmentation, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return for each image its shift (down, right), (n, 2), and whether it is mirrored, (n,)."""
    most = 0 if kind == "none" else max(1, size // 8)
    return rng.integers(-most, most + 1, size=(n, 2)), (rng.random(n) < 0.5) & (kind == "crop_flip")


@compiled.compiled
def place_rows(pixels: Any, shifts: Any, mirrored: Any, scale: Any, offset: Any, images: Any) -> None:
    """Write normalized images (N, S, S * 3), row by row."""
    n, size, width = images.shape
    turned = np.empty(width, dtype=np.uint8)
    for i in range(n):
        down, right = shifts[i]
        start, end = 3 * max(0, right), 3 * min(size, size + right)
        for y in range(size):
            row, source = images[i, y], y - down
            if not 0 <= source < size:
                row[:] = offset
                continue
            values = pixels[i, source]
            if mirrored[i]:
                _turn(values, turned)
                values = turned
            row[:start] = offset[:start]
            row[end:] = offset[end:]
            _normalize(values[start - 3 * right : end - 3 * right], scale, offset, row[start:end])


@compiled.compiled
def _turn(values: Any, turned: Any) -> None:
    """Write a row's pixels from right to left."""
    n = len(values)
    for x in range(0, n, 3):
        turned[x], turned[x + 1], turned[x + 2] = values[n - 3 - x], values[n - 2 - x], values[n - 1 - x]


@compiled.compiled
def _normalize(values: Any, scale: Any, offset: Any, row: Any) -> None:
    """Write ``values * scale + offset``; a function of its own, so that the loop becomes vector instructions."""
    for j in range(len(row)):
        row[j] = np.float32(values[j]) * scale[j] + offset[j]


def place_images(
    pixels: np.ndarray,
    shifts: np.ndarray,
    mirrored: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    images: np.ndarray,
) -> None:
    """The same without a compiler."""
    n, size, _ = images.shape
    canvas = np.zeros((n, size, size, 3), dtype=np.uint8)
    for target, image, (down, right), mirror in zip(canvas, pixels, shifts.tolist(), mirrored.tolist(), strict=True):
        source = image.reshape(size, size, 3)
        source = source[:, ::-1] if mirror else source
        rows = (down, size, 0, size - down) if down >= 0 else (0, size + down, -down, size)
        columns = (right, size, 0, size - right) if right >= 0 else (0, size + right, -right, size)
        target[rows[0] : rows[1], columns[0] : columns[1]] = source[rows[2] : rows[3], columns[2] : columns[3]]
    images[:] = canvas.reshape(images.shape) * scale + offset
