"""From a folder of your own images to a hypernetwork that predicts networks for them.

The images lie in one folder for each class. The command line makes shards of them, samples architectures with as many
classes, and meta-trains a hypernetwork by the recipe `embedded`. It then predicts all parameters of a network that it
has never seen, which is tested on images that it has not seen either.

    .venv/bin/python examples/own_images.py --out runs/shapes                  # draws circles, squares and triangles
    .venv/bin/python examples/own_images.py --out runs/mine --images PHOTOS    # your own: PHOTOS/cat/1.jpg, ...

It prints each command before it runs it, and the accuracy of the predicted network. The same command again takes what
is finished from `--out`. Two to three minutes on two CPU cores; `--steps 2 --architectures 4` takes half a minute.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import ghn
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor


def draw_shapes(folder: Path, per_class: int = 60) -> None:
    """Make a set of images: bright shapes on dark noise, 32 pixels wide."""
    rng = np.random.default_rng(0)
    for shape, corners in {"circle": 0, "square": 4, "triangle": 3}.items():
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            image = Image.fromarray(rng.integers(0, 100, (32, 32, 3), dtype=np.uint8))
            x, y, radius = (int(value) for value in rng.integers((12, 12, 7), (20, 20, 12)))
            color = tuple(int(value) for value in rng.integers(150, 256, 3))
            pen = ImageDraw.Draw(image)
            if corners:
                pen.regular_polygon((x, y, radius), corners, rotation=int(rng.integers(360)), fill=color)
            else:
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
            image.save(folder / shape / f"{i:03}.jpg")


def run(*arguments: str) -> None:
    """Run a `ghn` command, which is installed beside this Python."""
    print("\n$", shlex.join(("ghn", *arguments)), flush=True)
    subprocess.run([Path(sys.executable).with_name("ghn"), *arguments], check=True)


def read_shards(folder: Path) -> tuple[Tensor, Tensor]:
    """Read a split of a shard set, from -1 to 1 as in training; plain tars with an image and a class number for each."""
    images, labels = [], []
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                content = tar.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".cls"):
                    labels.append(int(content))
                else:
                    pixels_HWC = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
                    images.append(torch.from_numpy(pixels_HWC).permute(2, 0, 1) / 127.5 - 1)
    return torch.stack(images), torch.tensor(labels)


def main() -> None:
    """Shard, meta-train, predict, test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--images", type=Path, help="folder or zip with class folders (default: shapes are drawn)")
    parser.add_argument("--architectures", type=int, default=60, help="to train on")
    parser.add_argument("--steps", type=int, default=150, help="of meta-training")
    parser.add_argument("--processes", type=int, default=2, help="that train")
    options = parser.parse_args()
    source, out, size = options.images or options.out / "shapes", options.out, 16
    if not options.images:
        draw_shapes(source)

    # 1. The images, cut to one size and split into train, val and test.
    run("shard", "images", "--source", str(source), "--out", f"{out}/images", "--image-size", str(size))
    classes = json.loads((out / "images/test/manifest.json").read_text())["classes"]
    print(f"{len(classes)} classes: {', '.join(classes)}")

    # 2. Architectures to train on: small ones, for as many classes.
    rules = ("--num-classes", str(len(classes)), "--image-size", str(size), "--channels", "16", "--fc-dims", "64")
    count = ("--count", str(options.architectures), "--max-nodes", "100")
    run("shard", "deepnets", "--split", "train", *count, *rules, "--out", f"{out}/deepnets")

    # 3. Meta-training. A recipe's values can be overridden; the hypernetwork must know the number of classes.
    width = ("--set", f"model.num_classes={len(classes)}")
    length = ("--set", f"training.steps={options.steps}", "--set", f"training.processes={options.processes}")
    data = ("--images", f"{out}/images", "--deepnets", f"{out}/deepnets")
    run("train", "--recipe", "embedded", *data, *width, *length, "--run", f"{out}/train")

    # 4. A network that was not among those trained on, and images of the test split.
    hypernet = ghn.load_checkpoint(out / "train/model")
    unseen = ghn.sample_architectures("val", 1, 0, len(classes), size, channels=[16], fc_dims=[64])[0]
    images, labels = read_shards(out / "images/test")
    with torch.no_grad():
        logits = unseen.run(ghn.predict(hypernet, unseen.graph), images, training=False)
    right = 100 * (logits.argmax(dim=1) == labels).float().mean().item()
    print(f"\na network of {len(unseen.graph)} nodes, predicted: {right:.0f}% of {len(labels)} test images are right")


if __name__ == "__main__":
    main()
