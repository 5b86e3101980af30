"""`pipelines.image_batch`: decoding and augmentation."""

from __future__ import annotations

import numpy as np
import pytest

from ghn import compiled
from ghn.errors import DataError
from pipelines.image_batch import decode, to_batch
from tests.images import make_image


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decoding_gives_three_channels_of_the_wanted_size(mode: str) -> None:
    pixels, label = decode({"__key__": "0", "png": make_image((40, 30), mode=mode, kind="PNG"), "cls": b"7"}, 16)
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8 and label == 7
    assert (pixels[..., 0] == 100).all() and (pixels[..., 1] == (100 if mode == "L" else 0)).all()
    with pytest.raises(DataError, match="no image"):
        decode({"__key__": "0", "cls": b"7"}, 16)


PLACES = pytest.mark.parametrize("compiler", [True, False])


@PLACES
def test_augmentation_shifts_and_mirrors_deterministically(compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "AVAILABLE", compiler)
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


@PLACES
def test_batches_are_normalized(compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "AVAILABLE", compiler)
    rng = np.random.default_rng(0)
    decoded = [(rng.integers(0, 256, size=(5, 5, 3), dtype=np.uint8), label) for label in range(3)]
    images, labels = to_batch(decoded, [0.5, 0.4, 0.0], [0.5, 0.25, 1.0])
    assert images.shape == (3, 3, 5, 5) and labels.tolist() == [0, 1, 2]
    for image, (pixels, _) in zip(images, decoded, strict=True):
        expected = (pixels / 255 - [0.5, 0.4, 0.0]) / [0.5, 0.25, 1.0]
        np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-6)
