"""Predict parameters for a search space of your own, and teach a hypernetwork that space in plain PyTorch.

The space is a family of small residual networks with random depth, width and kernels: ordinary modules, which
`ghn.trace` turns into graphs. A new hypernetwork is meta-trained on members of it, and then predicts for others that it
has not seen. These are ranked by the accuracy of their predictions, without training any of them.

    .venv/bin/python examples/own_search_space.py
    .venv/bin/python examples/own_search_space.py --checkpoint runs/demo/train/model  # ranks with a trained one as well

It prints the meta-loss at the start and at the end, mean accuracies on test images, and the best networks. A minute
on two CPU cores; `--steps 4 --networks 3` takes seconds.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from statistics import mean

import ghn
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


class Member(nn.Module):
    """A member of the space: a stem, residual blocks, and a classifier of ten classes."""

    def __init__(self, depth: int, width: int, kernels: list[int]) -> None:
        super().__init__()
        self.label = f"depth {depth}, width {width:>2}, kernels {' '.join(map(str, kernels))}"
        self.stem = self.layer(3, width, 3)
        self.blocks = nn.ModuleList(self.layer(width, width, kernel) for kernel in kernels)
        self.classifier = nn.Linear(width, 10)

    @staticmethod
    def layer(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
        """Batch normalization without running statistics: the parameters are new at every step."""
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs, track_running_stats=False), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, S, S) to logits (N, 10); pooling lies behind half of the blocks."""
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = x + block(x)
            if i == len(self.blocks) // 2:
                x = F.max_pool2d(x, 2)
        return self.classifier(x.mean(dim=(2, 3)))


def draw(rng: random.Random, seen: set[str]) -> Member:
    """Draw a member of the space that is not among those seen."""
    while True:
        depth = rng.randint(2, 6)
        member = Member(depth, rng.choice([16, 24, 32]), [rng.choice([1, 3, 5]) for _ in range(depth)])
        if member.label not in seen:
            return member


def main() -> None:
    """Meta-train on the space, then rank unseen members."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a trained hypernetwork that ranks, too")
    parser.add_argument("--steps", type=int, default=300, help="of meta-training")
    parser.add_argument("--networks", type=int, default=20, help="to rank")
    options = parser.parse_args()

    data = load_digits()
    images = F.interpolate(torch.from_numpy(data.images).float()[:, None] / 8 - 1, size=(16, 16), mode="bilinear")
    images, labels = images.expand(-1, 3, -1, -1), torch.from_numpy(data.target)
    (images, test_images), (labels, test_labels) = images.split([1397, 400]), labels.split([1397, 400])

    # Meta-training: predict, run the networks with what was predicted, and send the gradient to the hypernetwork.
    torch.manual_seed(0)
    rng = random.Random(0)  # noqa: S311
    hypernet = ghn.GHN(ghn.GHNConfig(num_classes=10, hid=32, max_shape=(32, 32, 5, 5)))
    optimizer = torch.optim.Adam(hypernet.parameters(), lr=3e-3)
    losses: list[float] = []
    seen: set[str] = set()
    for _ in range(options.steps):
        members = [draw(rng, set()) for _ in range(4)]
        seen.update(member.label for member in members)
        predictions = hypernet([ghn.trace(member, images[:1]) for member in members])  # as `ghn.predict`, but for many
        loss = torch.zeros(())
        for member, parameters in zip(members, predictions, strict=True):
            chosen = torch.randint(len(images), (32,))
            logits = torch.func.functional_call(member, parameters, images[chosen])
            loss = loss + F.cross_entropy(logits, labels[chosen]) / len(members)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(hypernet.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    few = max(1, len(losses) // 10)
    print(f"meta-loss: {mean(losses[:few]):.2f} at the start, {mean(losses[-few:]):.2f} at the end")

    # Ranking: the same unseen networks with parameters from different sources.
    given = {"given": ghn.load_checkpoint(options.checkpoint)} if options.checkpoint else {}
    predictors = {"new": hypernet.eval(), **given}
    members = [draw(rng, seen) for _ in range(options.networks)]
    scores: dict[str, list[float]] = {}
    with torch.no_grad():
        for member in members:
            graph = ghn.trace(member, images[:1])
            sources: dict[str, dict[str, Tensor]] = {"random": dict(member.named_parameters())}
            sources |= {name: ghn.predict(predictor, graph) for name, predictor in predictors.items()}
            for name, parameters in sources.items():
                answers = torch.func.functional_call(member, parameters, test_images).argmax(dim=1)
                scores.setdefault(name, []).append(100 * (answers == test_labels).float().mean().item())
    for name, values in scores.items():
        print(f"{name:>6}: {mean(values):.1f}% on average over {len(members)} unseen networks")
    print("\nthe best by the new hypernetwork's predictions:")
    for score, member in sorted(zip(scores["new"], members, strict=True), key=lambda pair: -pair[0])[:5]:
        print(f"{score:6.1f}%  {member.label}")


if __name__ == "__main__":
    main()
