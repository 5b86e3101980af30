"""An architecture: a specification together with the network and the graph that it stands for."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ghn.build import build_graph
from ghn.compat import import_torchvision
from ghn.errors import InputError
from ghn.functional import run_layout, run_network
from ghn.genotype import IMAGENET_IMAGE_SIZE, ArchitectureSpec, Genotype, ModelSpec, Spec
from ghn.graph import ArchitectureGraph
from ghn.layout import layout
from ghn.networks import Network, NoInitialization
from ghn.small_images import adjust_for_small_images
from ghn.space import SAMPLED_SPLITS, SPLITS, sample_spec
from ghn.tracing.trace import trace


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture.

    Attributes:
        spec: what it is, as data.
        split: the split it was drawn for, or "" for a user's own.
        index: its position in that split.
        stored_graph: its graph, where that was read from a file; otherwise it is built or traced when asked for.

    Examples:
        >>> architecture = sample_architectures("val", 1, seed=0)[0]
        >>> parameters = dict(architecture.network().named_parameters())
        >>> architecture.run(parameters, torch.zeros(2, 3, 32, 32), training=False).shape
        torch.Size([2, 10])

    """

    spec: Spec
    split: str = ""
    index: int = 0
    stored_graph: ArchitectureGraph | None = field(default=None, repr=False, compare=False)

    @functools.cached_property
    def graph(self) -> ArchitectureGraph:
        """The computational graph (computed once); raises :class:`InputError` if the specification describes no network."""
        if self.stored_graph is not None:
            return self.stored_graph
        if isinstance(self.spec, ArchitectureSpec):
            return build_graph(self.spec)
        return trace(self._skeleton, example_input(self))

    @functools.cached_property
    def _skeleton(self) -> nn.Module:
        """The network without memory (meta device), built once, to be run with predicted parameters."""
        return self.network(device="meta")

    def run(self, parameters: Mapping[str, Tensor], images_NCHW: Tensor, *, training: bool) -> Tensor:
        """Return the logits (N, classes) of the network with the given parameters, by name; differentiable in them.

        Args:
            parameters: all parameters that the network has.
            images_NCHW: images (N, 3, S, S); ``channels_last`` format is quicker on CPUs.
            training: training mode (dropout); batch normalization uses batch statistics in both modes.

        """
        if isinstance(self.spec, ArchitectureSpec):
            return run_layout(layout(self.spec), parameters, images_NCHW, training=training)
        return run_network(self._skeleton.train(training), parameters, images_NCHW)

    def network(self, *, device: str | torch.device = "cpu") -> nn.Module:
        """Build the network, ordinarily initialized; its forward maps images (N, 3, S, S) to logits (N, classes).

        Args:
            device: where; ``"meta"`` builds without memory, for functional calls with predicted parameters.

        """
        skip_init = NoInitialization() if torch.device(device).type == "meta" else contextlib.nullcontext()
        with torch.device(device), skip_init:
            return Network(layout(self.spec)) if isinstance(self.spec, ArchitectureSpec) else _resnet50(self.spec)

    @property
    def label(self) -> str:
        """A name for messages, e.g. ``deep[3]``."""
        return f"{self.split or 'architecture'}[{self.index}]"


def sample_architectures(
    split: str,
    count: int,
    seed: int,
    num_classes: int = 10,
    image_size: int = 32,
    *,
    channels: Sequence[int] | None = None,
    fc_dims: Sequence[int] | None = None,
    start: int = 0,
) -> list[Architecture]:
    """Draw ``count`` architectures of a DeepNets-1M split.

    Args:
        split: train, val, test, wide, deep, dense, bnfree, or ``predefined`` (ResNet-50, then the 12-cell ViT; at most
            these two).
        count: how many (>= 0).
        seed: any whole number >= 0; architecture i depends on (split, seed, i) alone.
        num_classes: width of the classifiers.
        image_size: image height and width in pixels (the published sizes are 32 and 224).
        channels: initial channels to draw from, instead of the published rule (multiples of 8).
        fc_dims: hidden classifier widths to draw from, instead of the published rule.
        start: index of the first one.

    Returns:
        ``count`` architectures (fewer of ``predefined``), which build their graphs and networks when asked.

    Raises:
        InputError: for an unknown split, negative numbers, or widths out of range.

    Examples:
        >>> [architecture.label for architecture in sample_architectures("deep", 2, seed=0)]
        ['deep[0]', 'deep[1]']

    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; splits are {', '.join(SPLITS)}")
    if count < 0 or seed < 0 or start < 0:
        raise InputError(f"count={count}, seed={seed}, start={start}: none may be negative")
    if split not in SAMPLED_SPLITS:
        return predefined_architectures(num_classes, image_size)[start : start + count]
    widths: dict[str, Any] = {
        "channels": channels,
        "fc_dims": fc_dims,
        "num_classes": num_classes,
        "image_size": image_size,
    }
    return [
        Architecture(spec=sample_spec(split, seed, index, **widths), split=split, index=index)
        for index in range(start, start + count)
    ]


def predefined_architectures(num_classes: int = 10, image_size: int = 32) -> list[Architecture]:
    """Return the two hand-made evaluation networks: ResNet-50 and the 12-cell ViT (paper, section 5)."""
    vit = ArchitectureSpec(
        genotype=Genotype(
            normal=(("none", 0), ("msa", 1)),
            normal_concat=(2,),
            reduce=(("none", 0), ("avg_pool_3x3", 1)),
            reduce_concat=(2,),
        ),
        n_cells=12,
        C=128,
        C_mult=1,
        norm="bnorm",
        preproc=False,
        ks=3,
        stem_type=0,
        stem_pool=False,
        glob_avg=True,
        fc_layers=1,
        fc_dim=256,
        num_classes=num_classes,
        image_size=image_size,
    )
    resnet = ModelSpec(model="torchvision:resnet50", num_classes=num_classes, image_size=image_size)
    vit.validate()
    specs: tuple[Spec, ...] = (resnet, vit)
    return [Architecture(spec=spec, split="predefined", index=i) for i, spec in enumerate(specs)]


def _resnet50(spec: ModelSpec) -> nn.Module:
    """Torchvision's ResNet-50; on small images a 3x3 stride-1 first convolution and no max-pool (as published)."""
    torchvision = import_torchvision()

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, track_running_stats=False)

    model = torchvision.models.resnet50(num_classes=spec.num_classes, norm_layer=norm)
    return adjust_for_small_images(model) if spec.image_size < IMAGENET_IMAGE_SIZE else model


def example_input(architecture: Architecture) -> Tensor:
    """Return zeros of the shape that the architecture takes, (2, 3, S, S)."""
    size = architecture.spec.image_size
    return torch.zeros(2, 3, size, size)
