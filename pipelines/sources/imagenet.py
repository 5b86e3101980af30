"""ImageNet as it is distributed (ILSVRC2012): ``train/<wnid>/*.JPEG``, and a validation set with a ground truth file.

Classes are ordered by wnid. The labels of the official test set are not public, so the official validation set is what
results are quoted on: it becomes the split ``test``, and the split ``val``, for choosing between models, is taken from
the training images.
"""

from __future__ import annotations

import re

import numpy as np

from ghn.errors import InputError
from pipelines.sources.files import Files
from pipelines.sources.folders import extension
from pipelines.sources.images import EXTENSIONS
from pipelines.sources.listing import SPLITS, Listing

_TRAIN = re.compile(r"(?:^|/)train/(n\d{8})/[^/]+$")
_VALIDATION = re.compile(r"(?:^|/)(?:val/(?:(n\d{8})/)?)?(ILSVRC2012_val_\d{8}\.[A-Za-z]+)$")
_GROUND_TRUTH = (
    "ILSVRC2012_validation_ground_truth.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "LOC_val_solution.csv",
    "val.txt",
)
_CLASS_FOLDER = re.compile(r"(?:^|/)train/(n\d{8})$")
_WNID = re.compile(r"n\d{8}")


def is_imagenet(files: Files) -> bool:
    """Whether some file is an official validation image, and some lies in a class folder named by a wnid."""
    return any(_VALIDATION.search(name) for name in files.names) and any(_TRAIN.search(name) for name in files.names)


def list_imagenet(files: Files) -> Listing:
    """List training and validation images.

    Raises:
        InputError: if there is no ground truth for the validation images, or it does not fit them.

    """
    train, validation = [], []
    for name in files.names:
        if extension(name) not in EXTENSIONS:
            continue
        if match := _TRAIN.search(name):
            train.append((name, match[1]))
        elif match := _VALIDATION.search(name):
            validation.append((name, match[1] or ""))
    classes = tuple(sorted({wnid for _, wnid in train}))
    folders = [*files.folders, *(name.rpartition("/")[0] for name in files.names)]
    if empty := sorted({match[1] for name in folders if (match := _CLASS_FOLDER.search(name))} - set(classes)):
        raise InputError(
            f"class folder train/{empty[0]} in {files.path.name} holds no images; remove it, or add its images"
        )
    number = {wnid: i for i, wnid in enumerate(classes)}
    if not all(wnid for _, wnid in validation):
        truth = _ground_truth(files, [name for name, _ in validation])
        validation = [(name, wnid) for (name, _), wnid in zip(validation, truth, strict=True)]
    for name, wnid in validation:
        if wnid not in number:
            raise InputError(f"validation image {name} is of class {wnid}, which has no training images")
    names = [name for name, _ in train + validation]
    return Listing(
        name=files.path.name,
        names=names,
        labels=np.array([number[wnid] for _, wnid in train + validation], dtype=np.int32),
        given=np.repeat([SPLITS.index("train"), SPLITS.index("test")], [len(train), len(validation)]).astype(np.int8),
        classes=classes,
        load=lambda i: (files.read(names[i]), extension(names[i])),
    )


def _ground_truth(files: Files, images: list[str]) -> list[str]:
    """Return the wnid of each validation image."""
    found = {name.rpartition("/")[2]: name for name in reversed(files.names)}
    name = next((found[known] for known in _GROUND_TRUTH if known in found), None)
    if name is None:
        raise InputError(
            f"{files.path.name} has validation images in no class folders and no ground truth file; put one of "
            f"{', '.join(_GROUND_TRUTH)} into it"
        )
    try:
        content = files.read(name)
    except (OSError, ValueError) as error:
        raise InputError(f"ground truth {name} in {files.path.name} can not be read: {error}") from error
    lines = [line for line in content.decode(errors="replace").splitlines() if line.strip()]
    if lines and lines[0].startswith("ImageId"):  # the header of the CSV form
        lines = lines[1:]
    if all(line.strip().isdigit() for line in lines):
        wnids = _of_official_numbers(files, [int(line) for line in lines])
    else:
        words = [re.split(r"[\s,]+", line.strip()) for line in lines]
        if all(len(word) > 1 and not _WNID.fullmatch(word[0]) for word in words):  # image, then wnid
            by_image = {word[0].rpartition("/")[2].partition(".")[0]: word[1] for word in words}
            stems = [image.rpartition("/")[2].partition(".")[0] for image in images]
            if missing := [stem for stem in stems if stem not in by_image]:
                raise InputError(f"ground truth {name} has no line for {len(missing)} images, first {missing[0]}")
            wnids = [by_image[stem] for stem in stems]
        else:
            wnids = [word[0] for word in words]
    if len(wnids) != len(images):
        raise InputError(f"ground truth {name} has {len(wnids)} lines for {len(images)} validation images")
    if bad := next((wnid for wnid in wnids if not _WNID.fullmatch(wnid)), None):
        raise InputError(f"ground truth {name}: {bad!r} is not a wnid such as n01440764")
    return wnids


def _of_official_numbers(files: Files, numbers: list[int]) -> list[str]:
    """Translate ILSVRC2012 class numbers, whose order is not that of the wnids, by the development kit's ``meta.mat``."""
    import io

    from scipy.io import loadmat

    name = next((name for name in files.names if name.rpartition("/")[2] == "meta.mat"), None)
    if name is None:
        raise InputError(
            f"the ground truth in {files.path.name} holds official class numbers, whose meaning is in the development "
            "kit's data/meta.mat: put that file into it too"
        )
    try:
        synsets = loadmat(io.BytesIO(files.read(name)), squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(f"{name} in {files.path.name} is not the development kit's meta.mat: {error}") from error
    if (unknown := next((number for number in numbers if number not in wnids), None)) is not None:
        raise InputError(f"{name} in {files.path.name} has no class number {unknown}")
    return [wnids[number] for number in numbers]
