"""From samples of an image shard to a batch: decode, augment, normalize.

Batches are ``channels_last``, the order in which images are decoded and in which convolutions are quick on CPUs. Between
decoder and batch each value is touched once: small images could easily take longer to shuffle around than to decode.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ghn.compiled import compiled
from ghn.errors import DataError
from pipelines.recipe import ImageSettings
from pipelines.sources.images import EXTENSIONS, fit

if TYPE_CHECKING:
    from torch import Tensor

_PIXELS = "__pixels__"
_CHUNK = 1 << 18  # values that are placed at once: they stay in a core's cache

Augmentation = Literal["none", "shift", "crop_flip", "imagenet"]
Decoded = tuple[np.ndarray, int]
"""Pixels (S, S, 3) uint8, and the class number."""


def decode(sample: dict[str, Any], size: int, side: int | None = None) -> Decoded:
    """Return the pixels and the class of one sample; its shorter side becomes ``side``, then the centre is cut out.

    Args:
        sample: of an image shard.
        size: height and width of the result in pixels.
        side: pixels, at least ``size`` (the default).

    """
    with _open(sample) as image:
        pixels = np.asarray(fit(image.convert("RGB"), size, side))
    return pixels, int(sample["cls"])


def decode_augmented(sample: dict[str, Any], size: int, rng: np.random.Generator) -> Decoded:
    """Return a random part of an image, resized, with jittered colours, as is usual for ImageNet (paper, appendix B)."""
    from PIL import Image

    with _open(sample) as image:
        box = random_box(image.width, image.height, rng)
        part = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=box)
    return jitter_colours(np.asarray(part), rng), int(sample["cls"])


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw (left, top, right, bottom) of 8 to 100% of an image, 3:4 to 4:3 in shape; the centre if none fits in ten tries."""
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def jitter_colours(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation by up to 40% and hue by up to a fifth of the circle, in random order."""
    import torch
    from torchvision.transforms.v2 import functional as change

    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    changes = (
        (change.adjust_brightness, 1 + rng.uniform(-0.4, 0.4)),
        (change.adjust_contrast, 1 + rng.uniform(-0.4, 0.4)),
        (change.adjust_saturation, 1 + rng.uniform(-0.4, 0.4)),
        (change.adjust_hue, rng.uniform(-0.2, 0.2)),
    )
    for i in rng.permutation(len(changes)):
        function, amount = changes[i]
        image = function(image, float(amount))
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _open(sample: dict[str, Any]) -> Any:
    from PIL import Image

    extension = next((key for key in sample if key in EXTENSIONS), None)
    if extension is None or "cls" not in sample:
        raise DataError(f"sample {sample.get('__key__')} holds no image or no class; make the shard set again")
    return Image.open(io.BytesIO(sample[extension]))


def to_batch(
    decoded: Sequence[Decoded],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    augmentation: Augmentation = "none",
    rng: np.random.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (images (N, 3, S, S) float32, class numbers (N,)).

    For ``shift`` and ``crop_flip`` images are shifted by up to an eighth of their size (zeros come in), for ``crop_flip`` and
    ``imagenet`` half of them are mirrored; then every channel is normalized by its mean and standard deviation (of values
    from 0 to 1).
    """
    import torch

    n, size = len(decoded), len(decoded[0][0])
    shifts, mirrored = _draw(n, size, augmentation, rng or np.random.default_rng(0))
    scale = np.tile(np.float32(1 / (255 * np.array(std))), size)
    offset = np.tile(np.float32(-np.array(mean) / np.array(std)), size)
    images = np.empty((n, size, size * 3), dtype=np.float32)
    step = max(1, _CHUNK // (3 * size**2))
    for start in range(0, n, step):
        part = slice(start, start + step)
        pixels = np.stack([pixels for pixels, _ in decoded[part]]).reshape(-1, size, size * 3)
        _place_rows(pixels, shifts[part], mirrored[part], scale, offset, images[part])
    labels = torch.tensor([label for _, label in decoded])
    return torch.from_numpy(images).view(n, size, size, 3).permute(0, 3, 1, 2), labels


def training_batch(
    samples: Sequence[dict[str, Any]], settings: ImageSettings, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return samples as augmented images (N, 3, S, S) and class numbers (N,), as a recipe's ``images`` says."""
    decoded = []
    for sample in samples:
        if settings.augment == "imagenet":
            decoded.append(decode_augmented(sample, settings.size, rng))
            continue
        if _PIXELS not in sample:  # the reader keeps the samples of a small shard set
            sample[_PIXELS] = decode(sample, settings.size)
        decoded.append(sample[_PIXELS])
    return to_batch(decoded, settings.mean, settings.std, augmentation=settings.augment, rng=rng)


def _draw(n: int, size: int, kind: Augmentation, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return for each image its shift (down, right), (n, 2), and whether it is mirrored, (n,)."""
    most = max(1, size // 8) if kind in ("shift", "crop_flip") else 0
    return rng.integers(-most, most + 1, size=(n, 2)), (rng.random(n) < 0.5) & (kind in ("crop_flip", "imagenet"))


@compiled
def _place_rows(pixels: Any, shifts: Any, mirrored: Any, scale: Any, offset: Any, images: Any) -> None:
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


@compiled
def _turn(values: Any, turned: Any) -> None:
    """Write a row's pixels from right to left."""
    n = len(values)
    for x in range(0, n, 3):
        turned[x], turned[x + 1], turned[x + 2] = values[n - 3 - x], values[n - 2 - x], values[n - 1 - x]


@compiled
def _normalize(values: Any, scale: Any, offset: Any, row: Any) -> None:
    """Write ``values * scale + offset``; a function of its own, so that the loop becomes vector instructions."""
    for j in range(len(row)):
        row[j] = np.float32(values[j]) * scale[j] + offset[j]
