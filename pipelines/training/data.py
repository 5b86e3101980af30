"""The data of a meta-training step: a function of (recipe, step) alone, the same on every rank.

One image batch is shared by all networks of a global meta-batch, and the networks are shared out over the ranks, so the
number of ranks changes who computes what, never what is computed.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ghn.architecture import Architecture
from ghn.errors import InputError
from ghn.genotype import ArchitectureSpec, Spec
from ghn.space import redraw_widths
from pipelines.image_batch import training_batch
from pipelines.progress import emit
from pipelines.recipe import ArchitectureSettings, ImageSettings, Recipe
from pipelines.shards.architectures import read_spec
from pipelines.shards.reader import Kind, ReaderState, ShardReader, open_reader

_AUGMENT_STREAM, _WIDTH_STREAM = 1, 2
_RECENT = 512  # architectures, about a megabyte each


@dataclass(frozen=True, kw_only=True)
class MetaBatch:
    """One global step's data: the whole meta-batch, and one image batch for all networks or one for each."""

    specs: Sequence[Callable[[], tuple[Spec, int]]]
    batches: Sequence[Callable[[], tuple[Tensor, Tensor]]]
    architecture_of: Callable[[Spec, int], Architecture]

    def __len__(self) -> int:
        return len(self.specs)

    def spec(self, position: int) -> Spec:
        """Specification of the network at a position; read only when asked for."""
        return self.specs[position]()[0]

    def architecture(self, position: int) -> Architecture:
        """The network at a position."""
        return self.architecture_of(*self.specs[position]())

    def images_of(self, position: int) -> tuple[Tensor, Tensor]:
        """Images (N, 3, S, S) and class numbers (N,) for the network at a position; decoded only when asked for."""
        return self.batches[position % len(self.batches)]()


class MetaBatches:
    """Read meta-batches from the recipe's shard sets, resumable at any step.

    Architectures used of late are kept, with their graphs and networks, because building those costs a good part of a step.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        seed, images, deepnets = recipe.training.seed, recipe.images, recipe.architectures
        self.images = _open(images, "images", seed)
        self.deepnets = _open(deepnets, "deepnets", seed)
        self._recent: OrderedDict[Spec, Architecture] = OrderedDict()
        self._check()

    def _check(self) -> None:
        """Compare the shard sets with the recipe before anything starts."""
        model, manifest = self.recipe.model, self.images.manifest
        classes = len(manifest.classes or ())
        if classes < model.num_classes:
            emit("fewer_classes", images=classes, networks=model.num_classes)
        if classes > model.num_classes:
            raise InputError(
                f"{self.images.store.root} has {classes} classes but the recipe says model.num_classes="
                f"{model.num_classes}; set model.num_classes={classes} (and shard architectures with as many)"
            )
        request = self.deepnets.manifest.request
        for name, wanted in (("num_classes", model.num_classes), ("image_size", self.recipe.images.size)):
            if request.get(name) != wanted:
                raise InputError(
                    f"{self.deepnets.store.root} was made for {name}={request.get(name)} but the recipe says {wanted}; "
                    f"shard architectures with {name.replace('_', '-')} {wanted}, or change the recipe"
                )

    def state(self) -> dict[str, Any]:
        """Return where both readers are, as JSON-ready data."""
        return {"images": asdict(self.images.state()), "deepnets": asdict(self.deepnets.state())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.images.restore(ReaderState(**state["images"]))
        self.deepnets.restore(ReaderState(**state["deepnets"]))

    def manifests(self) -> dict[str, str]:
        """Return the SHA-256 of both manifests."""
        return {"images": self.images.manifest.digest(), "deepnets": self.deepnets.manifest.digest()}

    def reading(self) -> dict[str, Any]:
        """Return what both readers did since the start of this process, for the metrics.

        Seconds of waiting for shards, megabytes read, megabytes per second of reading, and what was skipped, if anything.
        """
        readers = [self.images.metrics, self.deepnets.metrics]
        megabytes, seconds = (sum(getattr(m, name) for m in readers) for name in ("bytes", "fetch_s"))
        row: dict[str, Any] = {
            "read_stall_s": round(sum(m.stall_s for m in readers), 4),
            "read_mb": round(megabytes / 1e6, 3),
            "read_mb_per_s": round(megabytes / 1e6 / seconds, 2) if seconds else None,
        }
        if bad := [name for m in readers for name in m.bad_shards]:
            row |= {"bad_shards": bad, "replaced_samples": sum(m.replaced for m in readers)}
        return row

    def take(self, step: int) -> MetaBatch:
        """Return the data of one step; steps are taken in order."""
        recipe = self.recipe
        count = recipe.training.meta_batch if recipe.images.per_network else 1
        batches = [
            functools.cache(functools.partial(self._batch, self.images.take(recipe.images.batch), (step, i)))
            for i in range(count)
        ]
        specs = [
            functools.cache(functools.partial(self._spec, sample, (step, i)))
            for i, sample in enumerate(self.deepnets.take(recipe.training.meta_batch))
        ]
        return MetaBatch(specs=specs, batches=batches, architecture_of=self._architecture)

    def _batch(self, samples: list[dict[str, Any]], stream: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.recipe.training.seed, _AUGMENT_STREAM, *stream])
        return training_batch(samples, self.recipe.images, rng)

    def _spec(self, sample: dict[str, Any], stream: tuple[int, int]) -> tuple[Spec, int]:
        """Return a sample's specification, with widths drawn for this use of it, and its index in the split."""
        widths = self.recipe.architectures
        spec = read_spec(sample)
        if isinstance(spec, ArchitectureSpec) and (widths.channels or widths.fc_dims):
            rng = np.random.default_rng([self.recipe.training.seed, _WIDTH_STREAM, *stream])
            spec = redraw_widths(spec, rng, widths.channels, widths.fc_dims)
        return spec, int(sample["__key__"])

    def _architecture(self, spec: Spec, index: int) -> Architecture:
        architecture = self._recent.pop(spec, None)
        if architecture is None:
            architecture = Architecture(spec=spec, split="train", index=index)
        self._recent[spec] = architecture  # now the most recent
        if len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        return architecture


def _open(settings: ImageSettings | ArchitectureSettings, kind: Kind, seed: int) -> ShardReader:
    return open_reader(
        settings.url,
        "train",
        kind,
        seed=seed,
        window=settings.shuffle_window,
        prefetch=settings.prefetch,
        on_bad_shard=settings.on_bad_shard,
    )
