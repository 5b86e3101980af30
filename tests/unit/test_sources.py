"""`pipelines.sources`: folders, zips, ImageNet and CIFAR as they are distributed, and what is wrong with them."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from ghn.errors import InputError
from pipelines.sources import ImageSource, open_source
from tests.images import make_folder, make_image


def names(source: ImageSource, split: str) -> list[str]:
    return [source.listing.names[i] for i in source.splits[split]]


def test_digits_are_split_by_seed() -> None:
    source = open_source("digits", seed=0)
    sizes = {split: len(items) for split, items in source.splits.items()}
    assert sum(sizes.values()) == 1797 and sizes["test"] == 359 and sizes["val"] == 144
    assert len({name for split in source.splits for name in names(source, split)}) == 1797
    assert names(open_source("digits", seed=0), "train") == names(source, "train")
    assert names(open_source("digits", seed=1), "train") != names(source, "train")
    image = Image.open(io.BytesIO(source.load(0)[0]))
    assert image.size == (16, 16) and image.mode == "RGB"


@pytest.mark.parametrize("layout", ["{cls}/{n}.jpg", "{split}/{cls}/{n}.jpg", "around/{split}/{cls}/{n}.JPG"])
def test_folders_and_zips_give_the_same(layout: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", layout)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))
    from_folder, from_zip = open_source(str(folder), seed=0), open_source(str(tmp_path / "images.zip"), seed=0)
    assert from_folder.listing.classes == from_zip.listing.classes == ("class 0 é", "class 1 é", "class 2 é")
    assert from_folder.digest == from_zip.digest
    for split in ("train", "val", "test"):
        assert names(from_folder, split) == names(from_zip, split) != []
        first = from_folder.splits[split][0]
        assert from_folder.load(first) == from_zip.load(first)
    if "split" in layout:
        assert all("test/" in name for name in names(from_folder, "test"))
        assert not any("test/" in name for name in names(from_folder, "train"))


def test_original_bytes_are_kept_unless_resized(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images")
    kept = open_source(str(folder), seed=0)
    assert kept.load(5) == ((folder / kept.listing.names[5]).read_bytes(), "jpg")
    content, extension = open_source(str(folder), seed=0, image_size=16).load(5)
    assert extension == "png" and Image.open(io.BytesIO(content)).size == (16, 16)


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
        open_source(str(folder), seed=0).load(0)


def test_validation_images_are_split_off_as_asked(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", "{split}/{cls}/{n}.jpg")
    sizes = {
        fraction: {
            split: len(indices)
            for split, indices in open_source(str(folder), seed=0, val_fraction=fraction).splits.items()
        }
        for fraction in (0.0, 0.25)
    }
    assert sizes == {0.0: {"train": 24, "test": 6}, 0.25: {"train": 18, "val": 6, "test": 6}}


@pytest.mark.parametrize("name", ["../evil/a.jpg", "/etc/a.jpg", "a/../../b.jpg", "c:/x/a.jpg", "..\\evil\\a.jpg"])
def test_path_tricks_in_zips_are_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("a/1.jpg", make_image())
        archive.writestr(name, make_image())
    with pytest.raises(InputError, match=r"images.zip holds the unsafe name"):
        open_source(str(tmp_path / "images.zip"), seed=0)


def test_names_that_occur_twice_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for name in ("a/1.jpg", "b/1.jpg", "a/1.jpg"):
            archive.writestr(name, make_image())
    with pytest.raises(InputError, match=r"two members named 'a/1.jpg'"):
        open_source(str(tmp_path / "images.zip"), seed=0)


def test_equal_stems_and_strange_names_are_all_kept(tmp_path: Path) -> None:
    wanted = ["a b/x.jpg", "a b/x.png", "a b/x.JPG", "ü/名 1.jpeg", "ü/x.tar.jpg", "ü/-.webp"]
    for i, name in enumerate(wanted):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(make_image(value=i))
    for ignored in (".hidden/a.jpg", "ü/.a.jpg", "__MACOSX/ü/a.jpg", "ü/notes.txt"):
        (tmp_path / ignored).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ignored).write_bytes(b"")
    source = open_source(str(tmp_path), seed=0)
    assert sorted(source.listing.names) == sorted(wanted) and source.listing.classes == ("a b", "ü")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("layout", ["{cls}/{n}.jpg", "around/{split}/{cls}/{n}.jpg"])
def test_empty_classes_are_named(zipped: bool, layout: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", layout)
    empty = next(iter(folder.rglob("*.jpg"))).parent.parent / "no images"
    empty.mkdir()
    if zipped:
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for path in folder.rglob("*"):
                archive.write(path, path.relative_to(folder))
    with pytest.raises(InputError, match=r"no images in images.* holds no images"):
        open_source(str(tmp_path / "images.zip" if zipped else folder), seed=0)
    (empty / "notes.txt").write_text("still none")
    with pytest.raises(InputError, match="no images in images holds no images"):
        open_source(str(folder), seed=0)


WNIDS = ("n01440764", "n02119789", "n03000001")
TRUTH = [2, 0, 1, 1, 0]


def make_imagenet(root: Path, *, truth: str | None, around: str = "") -> Path:
    for wnid in WNIDS:
        for n in range(4):
            path = root / around / "train" / wnid / f"{wnid}_{n}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(make_image())
    for n, label in enumerate(TRUTH, start=1):
        inner = f"{WNIDS[label]}/" if truth is None else ""
        path = root / around / f"val/{inner}ILSVRC2012_val_{n:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_image(value=n))
    images = [f"ILSVRC2012_val_{n:08d}" for n in range(1, 6)]
    lines = {
        "imagenet_2012_validation_synset_labels.txt": [WNIDS[label] for label in TRUTH],
        "val.txt": [f"{image}.JPEG {WNIDS[label]}" for image, label in reversed(list(zip(images, TRUTH, strict=True)))],
        "LOC_val_solution.csv": [
            "ImageId,PredictionString",
            *(f"{i},{WNIDS[k]} 1 2 3 4" for i, k in zip(images, TRUTH, strict=True)),
        ],
        "ILSVRC2012_validation_ground_truth.txt": [
            str(3 - label) for label in TRUTH
        ],  # numbers in an order of their own
    }
    if truth is not None:
        (root / truth).write_text("\n".join(lines[truth]) + "\n")
    if truth == "ILSVRC2012_validation_ground_truth.txt":
        kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O")]
        synsets = np.array([(3 - i, wnid, "a fish") for i, wnid in enumerate(WNIDS)], dtype=kinds)
        (root / "devkit/data").mkdir(parents=True)
        savemat(root / "devkit/data/meta.mat", {"synsets": synsets})
    return root


@pytest.mark.parametrize(
    "truth",
    [
        None,
        "imagenet_2012_validation_synset_labels.txt",
        "val.txt",
        "LOC_val_solution.csv",
        "ILSVRC2012_validation_ground_truth.txt",
    ],
)
def test_imagenet_as_distributed(truth: str | None, tmp_path: Path) -> None:
    root = make_imagenet(tmp_path / "imagenet", truth=truth, around="ILSVRC/Data/CLS-LOC")
    source = open_source(str(root), seed=0, val_fraction=0.25)
    assert source.listing.classes == WNIDS
    assert {split: len(indices) for split, indices in source.splits.items()} == {"train": 9, "val": 3, "test": 5}
    labels = {source.listing.names[i][-13:-5]: int(source.listing.labels[i]) for i in source.splits["test"]}
    assert [labels[f"{n:08d}"] for n in range(1, 6)] == TRUTH
    content, extension = source.load(source.splits["test"][0])
    assert extension == "jpeg" and content in [make_image(value=n) for n in range(1, 6)]


def test_ground_truth_that_does_not_fit_is_named(tmp_path: Path) -> None:
    truth = "imagenet_2012_validation_synset_labels.txt"
    root = make_imagenet(tmp_path / "imagenet", truth=truth)

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            open_source(str(root), seed=0)

    (root / truth).write_text("n01440764\n")
    refused("has 1 lines for 5 validation images")
    (root / truth).write_text("n01440764\n" * 4 + "fish\n")
    refused("'fish' is not a wnid")
    (root / truth).write_text("n01440764\n" * 4 + "n99999999\n")
    refused("n99999999, which has no training images")
    (root / truth).write_text("1\n" * 5)
    refused(r"data/meta\.mat")
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O")]
    savemat(root / "meta.mat", {"synsets": np.array([(1, WNIDS[0]), (2, WNIDS[1])], dtype=kinds)})
    (root / truth).write_text("0\n" * 5)
    refused("no class number 0")
    (root / "meta.mat").write_bytes(b"no matrix")
    refused(r"not the development kit's meta\.mat")
    (root / truth).unlink()
    refused("no ground truth file; put one of ILSVRC2012_validation_ground_truth.txt")


def test_an_empty_class_of_imagenet_is_named(tmp_path: Path) -> None:
    root = make_imagenet(tmp_path / "imagenet", truth=None)
    (root / "train" / "n00000000").mkdir()
    with pytest.raises(InputError, match=r"train/n00000000 in imagenet holds no images"):
        open_source(str(root), seed=0)


def cifar_files(kind: str, rng: np.random.Generator) -> tuple[dict[str, bytes], list[tuple[np.ndarray, int]]]:
    """Return the files of an archive with few images, and (planes, label) of each in order."""
    hundred, binary = "100" in kind, "binary" in kind
    parts = ["train"] if hundred else [f"data_batch_{i}" for i in range(1, 6)]
    files: dict[str, bytes] = {}
    images = []
    for name in [*parts, "test" if hundred else "test_batch"]:
        pixels = rng.integers(0, 256, size=(4, 3072), dtype=np.uint8)
        labels = rng.integers(0, 3, size=4).tolist()
        images += list(zip(pixels, labels, strict=True))
        if binary:
            front = [[9, label] if hundred else [label] for label in labels]
            records = [bytes(f) + row.tobytes() for f, row in zip(front, pixels, strict=True)]
            files[f"{name}.bin"] = b"".join(records)
        else:
            key = "fine_labels" if hundred else "labels"
            data = {"data": pixels, key: labels, "filenames": ["x.png"] * 4, "coarse_labels": [9] * 4}
            files[name] = as_published(data)
    classes = ["cat", "dog", "frog"]
    if binary:
        files["fine_label_names.txt" if hundred else "batches.meta.txt"] = ("\n".join(classes) + "\n\n").encode()
    else:
        key = "fine_label_names" if hundred else "label_names"
        files["meta" if hundred else "batches.meta"] = as_published({key: classes})
    return files, images


def as_published(data: object) -> bytes:
    """Pickle as Python 2 did: protocol 2, numpy's old module names."""
    return pickle.dumps(data, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def as_folder(files: dict[str, bytes], root: Path) -> Path:
    (root / "cifar").mkdir()
    for name, content in files.items():
        (root / "cifar" / name).write_bytes(content)
    return root / "cifar"


def as_tar(files: dict[str, bytes], root: Path) -> Path:
    with tarfile.open(root / "cifar.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"inner/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return root / "cifar.tar.gz"


def as_zip(files: dict[str, bytes], root: Path) -> Path:
    with zipfile.ZipFile(root / "cifar.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"inner/{name}", content)
    return root / "cifar.zip"


@pytest.mark.parametrize("kind", ["cifar-10-python", "cifar-10-binary", "cifar-100-python", "cifar-100-binary"])
@pytest.mark.parametrize("pack", [as_folder, as_tar, as_zip])
def test_official_cifar_archives(kind: str, pack: Callable[[dict[str, bytes], Path], Path], tmp_path: Path) -> None:
    files, images = cifar_files(kind, np.random.default_rng(0))
    source = open_source(str(pack(files, tmp_path)), seed=0, val_fraction=0.25)
    assert source.listing.classes == ("cat", "dog", "frog")
    assert source.listing.labels.tolist() == [label for _, label in images]
    for i, (planes, _) in enumerate(images):
        content, extension = source.load(i)
        assert extension == "png"
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(content))), planes.reshape(3, 32, 32).transpose(1, 2, 0)
        )
    train = len(images) - 4
    assert sorted(source.splits["test"]) == list(range(train, len(images)))
    count = round(0.25 * train)
    assert sorted(source.splits["val"]) == list(range(train - count, train))  # the last ones, as published
    assert sorted(source.splits["train"]) == list(range(train - count))


class Bomb:
    def __reduce__(self) -> object:
        return (print, ("run",))


def test_pickles_that_hold_more_than_data_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, _ = cifar_files("cifar-10-python", np.random.default_rng(0))
    files["data_batch_3"] = pickle.dumps({"data": Bomb(), "labels": []})
    with pytest.raises(InputError, match=r"data_batch_3 can not be read: it asks for builtins.print, which is no data"):
        open_source(str(as_tar(files, tmp_path)), seed=0)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("cifar-10-python", "data_batch_1", b"\x80\x02"),
        ("cifar-10-python", "data_batch_1", pickle.dumps([1])),
        ("cifar-10-python", "data_batch_1", pickle.dumps({"data": np.zeros((2, 3)), "labels": [0, 1]})),
        ("cifar-10-binary", "data_batch_1.bin", bytes(3074)),
    ],
)
def test_damaged_cifar_archives_are_named(kind: str, name: str, content: bytes, tmp_path: Path) -> None:
    files, _ = cifar_files(kind, np.random.default_rng(0))
    with pytest.raises(InputError, match=f"{name} can not be read"):
        open_source(str(as_tar(files | {name: content}, tmp_path)), seed=0)


class Hidden:
    """A pickled array whose dtype would describe memory that is not there."""

    def __reduce__(self) -> object:
        return (np.ndarray, ((4,), np.dtype("O")))


@pytest.mark.parametrize(
    "values", [Hidden(), np.array([None]), np.zeros((4, 3072), dtype=">i4"), np.zeros(4, dtype="f8")]
)
def test_arrays_of_other_kinds_are_refused(values: object, tmp_path: Path) -> None:
    files, _ = cifar_files("cifar-10-python", np.random.default_rng(0))
    files["data_batch_2"] = pickle.dumps({"data": values, "labels": [0] * 4}, protocol=2)
    with pytest.raises(InputError, match="data_batch_2 can not be read"):
        open_source(str(as_tar(files, tmp_path)), seed=0)


@pytest.mark.parametrize("labels", [None, ["cat"] * 4, [-1] * 4, [10**12] * 4])
def test_strange_labels_are_refused(labels: object, tmp_path: Path) -> None:
    files, _ = cifar_files("cifar-10-python", np.random.default_rng(0))
    pixels = np.zeros((4, 3072), dtype=np.uint8)
    files["test_batch"] = as_published({"data": pixels, "labels": labels} if labels else {"data": pixels})
    with pytest.raises(InputError, match="test_batch can not be read: it holds no list of labels"):
        open_source(str(as_folder(files, tmp_path)), seed=0)


def test_links_in_tars_are_no_files(tmp_path: Path) -> None:
    files, _ = cifar_files("cifar-10-binary", np.random.default_rng(0))
    del files["test_batch.bin"]
    with tarfile.open(as_tar(files, tmp_path), "w") as archive:
        member = tarfile.TarInfo("test_batch.bin")
        member.type, member.linkname = tarfile.SYMTYPE, "test_batch.bin"
        archive.addfile(member)
    with pytest.raises(InputError, match="a tar, but no CIFAR archive"):
        open_source(str(tmp_path / "cifar.tar.gz"), seed=0)


def test_damaged_members_of_zips_are_named(tmp_path: Path) -> None:
    files, _ = cifar_files("cifar-10-binary", np.random.default_rng(0))
    path = as_zip(files, tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(files["data_batch_3.bin"]) + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"data_batch_3.bin can not be read: Bad CRC"):
        open_source(str(path), seed=0)


def test_names_that_no_manifest_can_hold_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "images")
    (Path(os.fsdecode(bytes(tmp_path) + b"/images/c\xff"))).mkdir()
    with pytest.raises(InputError, match="not UTF-8; rename it"):
        open_source(str(tmp_path / "images"), seed=0)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", "train/{cls}/{n}.jpg")
    (folder / "val").symlink_to(folder / "train", target_is_directory=True)
    (folder / "train" / "loop").symlink_to(folder, target_is_directory=True)
    source = open_source(str(folder), seed=0)
    assert len(source.splits["train"]) + len(source.splits["test"]) == 30 and len(source.splits["val"]) == 30


def test_other_tars_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a tar, but no CIFAR archive"):
        open_source(str(as_tar({"x": b""}, tmp_path)), seed=0)
    (tmp_path / "cut.tar").write_bytes(as_tar({"x": b""}, tmp_path).read_bytes()[:20])
    with pytest.raises(InputError, match=r"cut.tar is not a readable tar"):
        open_source(str(tmp_path / "cut.tar"), seed=0)
