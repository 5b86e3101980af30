"""`pipelines.image_batch`: decoding and augmentation."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ghn.errors import DataError
from pipelines.image_batch import decode, decode_augmented, jitter_colours, random_box, to_batch
from tests.images import make_image


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decoding_gives_three_channels_of_the_wanted_size(mode: str) -> None:
    pixels, label = decode({"__key__": "0", "png": make_image((40, 30), mode=mode, kind="PNG"), "cls": b"7"}, 16)
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8 and label == 7
    assert (pixels[..., 0] == 100).all() and (pixels[..., 1] == (100 if mode == "L" else 0)).all()
    with pytest.raises(DataError, match="no image"):
        decode({"__key__": "0", "cls": b"7"}, 16)


def test_augmentation_shifts_and_mirrors_deterministically() -> None:
    pixels = np.random.default_rng(0).integers(1, 256, size=(16, 16, 3), dtype=np.uint8)

    def shifted(image: np.ndarray) -> set[bytes]:
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        return {padded[i : i + 16, j : j + 16].tobytes() for i in range(5) for j in range(5)}

    def augmented(kind: str, seed: int) -> set[bytes]:
        rng = np.random.default_rng(seed)
        images, _ = to_batch([(pixels, 0)] * 600, [0.0] * 3, [1.0] * 3, augmentation=kind, rng=rng)
        return {np.uint8(np.rint(image * 255)).tobytes() for image in images.permute(0, 2, 3, 1).numpy()}

    assert augmented("none", 0) == {pixels.tobytes()}
    assert augmented("shift", 1) == shifted(pixels)
    assert augmented("crop_flip", 2) == shifted(pixels) | shifted(pixels[:, ::-1])
    assert augmented("crop_flip", 3) == augmented("crop_flip", 3)


def test_batches_are_normalized() -> None:
    rng = np.random.default_rng(0)
    decoded = [(rng.integers(0, 256, size=(5, 5, 3), dtype=np.uint8), label) for label in range(3)]
    images, labels = to_batch(decoded, [0.5, 0.4, 0.0], [0.5, 0.25, 1.0])
    assert images.shape == (3, 3, 5, 5) and labels.tolist() == [0, 1, 2]
    for image, (pixels, _) in zip(images, decoded, strict=True):
        expected = (pixels / 255 - [0.5, 0.4, 0.0]) / [0.5, 0.25, 1.0]
        np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_boxes_are_drawn_within_the_published_sizes_and_shapes() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(400, 300, rng) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 400 and bottom.max() <= 300
    width, height = right - left, bottom - top
    area, shape = width * height / (400 * 300), width / height
    assert 0.075 < area.min() < 0.1 and 0.9 < area.max() <= 1  # sizes are rounded to pixels
    assert 0.74 < shape.min() < 0.77 and 1.31 < shape.max() < 1.36
    assert [random_box(400, 300, np.random.default_rng(1)) for _ in range(2)] == [
        random_box(400, 300, np.random.default_rng(1))
    ] * 2


def test_where_no_box_fits_the_centre_is_taken() -> None:
    assert random_box(1000, 30, np.random.default_rng(0)) == (480, 0, 520, 30)
    assert random_box(30, 1000, np.random.default_rng(0)) == (0, 480, 30, 520)


def test_jitter_stays_within_its_bounds_and_uses_them() -> None:
    grey = np.full((4, 4, 3), 100, dtype=np.uint8)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(300):
        changed = jitter_colours(grey, rng)
        assert changed.shape == grey.shape and changed.dtype == np.uint8
        assert len(np.unique(changed)) == 1  # on grey only brightness shows
        values.append(int(changed[0, 0, 0]))
    assert 58 <= min(values) < 66 and 134 < max(values) <= 141
    assert (grey == 100).all()


def test_augmented_decoding_is_a_resized_box_with_jitter() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(60, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    sample = {"__key__": "0", "png": file.getvalue(), "cls": b"7"}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        box = random_box(80, 60, rng)
        part = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR, box=box)
        expected = jitter_colours(np.asarray(part), rng)
        found, label = decode_augmented(sample, 16, np.random.default_rng(seed))
        assert label == 7 and np.array_equal(found, expected)
