"""Train on from predicted parameters, beside the ordinary initialization.

A hypernetwork predicts all parameters of a torchvision model that it has never seen. The model is evaluated as it is,
then fine-tuned on scikit-learn's digits. The same model with its ordinary initialization is trained beside it: the same
images in the same order, for the same number of steps.

    make demo  # trains the hypernetwork
    .venv/bin/python examples/predict_and_finetune.py

It prints how many parameters were predicted, and a table of test accuracies by number of training steps. Two minutes on
two CPU cores; `--steps 0 2 --images 64` takes seconds.

The demo's hypernetwork was trained for minutes, on networks of 16 channels. From a ResNet-18 expect about 20% without a
step (chance is 10%), from `--model sampled`, a network like those of its training but none of them, about 45%. Do not
expect more from fine-tuning: here ordinary initialization, which needs some steps to begin, is ahead after five to ten.
`ghn evaluate --sgd-steps` measures how many steps a prediction is worth. (Some of the images tested here were among the
demo's training images; `evaluate_checkpoint.py` keeps them apart.)
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import ghn
import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor, nn


def digits(size: int) -> tuple[Tensor, Tensor]:
    """Return the 1,797 scanned digits as (N, 3, size, size), from -1 to 1 as the demo's images, and their classes."""
    data = load_digits()
    images_N1HW = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    images = F.interpolate(images_N1HW, size=(size, size), mode="bilinear").expand(-1, 3, -1, -1)
    return images, torch.from_numpy(data.target)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of right answers in percent."""
    network.eval()
    answers = torch.cat([network(batch).argmax(dim=1) for batch in images.split(128)])
    return 100 * (answers == labels).float().mean().item()


def accuracies_while_training(
    network: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], counts: Sequence[int], batch: int
) -> Iterator[float]:
    """Train in place; yield the test accuracy at each of the numbers of steps."""
    images, labels = train
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    order = torch.Generator().manual_seed(0)  # the same images for both networks
    for step in range(max(counts) + 1):
        if step in counts:
            # Running statistics lag behind parameters that change quickly, and predicted ones have none at all.
            # So both networks get fresh ones; a copy, since training shall not depend on when it is looked at.
            yield accuracy(ghn.calibrate_batchnorm(copy.deepcopy(network), images[:256]), *test)
        chosen = torch.randint(len(images), (batch,), generator=order)
        network.train()
        optimizer.zero_grad()
        F.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()


def main() -> None:
    """Predict, evaluate, fine-tune, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/demo/train/model"))
    parser.add_argument("--model", default="resnet18", help="of torchvision (families with a small stem), or `sampled`")
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--images", type=int, default=1397, help="to train on")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 2, 5, 10, 20, 40], help="when to evaluate")
    options = parser.parse_args()
    if not options.checkpoint.exists():
        parser.error(f"no checkpoint at {options.checkpoint}: run `make demo` first, or give --checkpoint")

    images, labels = digits(options.image_size)
    train = images[: options.images], labels[: options.images]
    test = images[-400:], labels[-400:]

    torch.manual_seed(0)
    if options.model == "sampled":
        rule = {"image_size": options.image_size, "channels": [16], "fc_dims": [64]}
        ordinary = ghn.sample_architectures("val", 1, seed=0, **rule)[0].network()
    else:
        ordinary = torchvision.models.get_model(options.model, num_classes=10)
        ghn.adjust_for_small_images(ordinary)  # a first convolution with stride 1, no pooling behind it

    hypernet = ghn.load_checkpoint(options.checkpoint)
    predicted = copy.deepcopy(ordinary)
    coverage = ghn.initialize(predicted, hypernet, images[:1])
    print(f"{options.model}: {coverage}\n")

    print(f"{'steps':>5}  {'predicted':>9}  {'ordinary':>8}   test accuracy in percent")
    curves = (
        accuracies_while_training(network, train, test, options.steps, options.batch)
        for network in (predicted, ordinary)
    )
    for steps, mine, other in zip(sorted(options.steps), *curves, strict=True):
        print(f"{steps:>5}  {mine:>9.1f}  {other:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
