"""Image sources, decoding and augmentation."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ghn import compiled
from ghn.errors import DataError, InputError
from pipelines.image_batch import decode, to_batch
from pipelines.images import open_source


def make_image(size: tuple[int, int] = (20, 24), value: int = 100, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(stream, format=kind)
    return stream.getvalue()


def make_folder(root: Path, layout: str = "{cls}/{n}.jpg", classes: int = 3, per_class: int = 10) -> Path:
    for cls in range(classes):
        for n in range(per_class):
            path = root / layout.format(cls=f"class {cls} é", n=n, split="train" if n % 5 else "test")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(make_image(value=20 * n))
    return root


def test_digits_are_split_by_seed() -> None:
    source = open_source("digits", seed=0)
    sizes = {split: len(items) for split, items in source.splits.items()}
    assert sum(sizes.values()) == 1797 and sizes["test"] == 359 and sizes["val"] == 144
    names = [item.name for items in source.splits.values() for item in items]
    assert len(set(names)) == 1797
    assert [i.name for i in open_source("digits", seed=0).splits["train"]] == [i.name for i in source.splits["train"]]
    assert [i.name for i in open_source("digits", seed=1).splits["train"]] != [i.name for i in source.splits["train"]]
    image = Image.open(io.BytesIO(source.splits["train"][0].load()))
    assert image.size == (16, 16) and image.mode == "RGB"


@pytest.mark.parametrize("layout", ["{cls}/{n}.jpg", "{split}/{cls}/{n}.jpg", "around/{split}/{cls}/{n}.JPG"])
def test_folders_and_zips_give_the_same(layout: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", layout)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))
    from_folder, from_zip = open_source(str(folder), seed=0), open_source(str(tmp_path / "images.zip"), seed=0)
    assert from_folder.classes == from_zip.classes == ("class 0 é", "class 1 é", "class 2 é")
    assert from_folder.digest == from_zip.digest
    for split in ("train", "val", "test"):
        items = from_folder.splits[split]
        assert [i.name for i in items] == [i.name for i in from_zip.splits[split]] and items
        assert items[0].load() == from_zip.splits[split][0].load()
    if "split" in layout:
        assert all("test/" in item.name for item in from_folder.splits["test"])
        assert not any("test/" in item.name for item in from_folder.splits["train"])


def test_original_bytes_are_kept_unless_resized(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images")
    kept = open_source(str(folder), seed=0).splits["train"][0]
    assert kept.extension == "jpg" and kept.load() == (folder / kept.name).read_bytes()
    resized = open_source(str(folder), seed=0, image_size=16).splits["train"][0]
    assert resized.extension == "png" and Image.open(io.BytesIO(resized.load())).size == (16, 16)


def test_what_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        open_source(str(tmp_path / "nowhere"), seed=0)
    with pytest.raises(InputError, match="holds no images"):
        open_source(str(tmp_path / "empty"), seed=0)
    (tmp_path / "empty" / "one").mkdir()
    (tmp_path / "empty" / "one" / "a.png").write_bytes(make_image())
    with pytest.raises(InputError, match="one class folder"):
        open_source(str(tmp_path / "empty"), seed=0)
    (tmp_path / "empty" / "loose.png").write_bytes(make_image())
    with pytest.raises(InputError, match=r"loose.png .* lies in no class folder"):
        open_source(str(tmp_path / "empty"), seed=0)
    (tmp_path / "bad.zip").write_text("no zip")
    with pytest.raises(InputError, match=r"bad.zip is not a readable zip"):
        open_source(str(tmp_path / "bad.zip"), seed=0)
    folder = make_folder(tmp_path / "images")
    for path in folder.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"image .*\.jpg in .* can not be read"):
        open_source(str(folder), seed=0).splits["train"][0].load()


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
