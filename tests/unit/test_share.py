"""`pipelines.training.share`, a rank's share of a step: equal however it is cut; bad networks are left out by name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from ghn import GHN, Architecture, GHNConfig, sample_architectures
from ghn.errors import StopRequestedError
from pipelines.training.share import Network, ShareSettings, compute_share, from_whole

SETTINGS = ShareSettings(weight=1 / 4)


@pytest.fixture
def hypernet() -> GHN:
    torch.manual_seed(0)
    return GHN(GHNConfig(hid=8, max_shape=(8, 8, 7, 7))).double()


@pytest.fixture
def networks() -> list[Network]:
    torch.manual_seed(1)
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.randint(10, (6,))
    found = sample_architectures("train", 40, 0, image_size=16, channels=(8,), fc_dims=(32,))
    small = [a for a in found if len(a.graph) < 100][:4]
    return [Network(i, a, lambda: images, 100 + i) for i, a in enumerate(small)]


class Failing(Architecture):
    """A network that raises."""

    error: Exception

    def run(self, parameters, images_NCHW: Tensor, *, training: bool) -> Tensor:
        raise self.error


def failing(network: Network, error: Exception) -> Network:
    architecture = Failing(spec=network.architecture.spec, split="train", index=network.architecture.index)
    object.__setattr__(architecture, "error", error)
    return network._replace(architecture=architecture)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_gradients_add_up_however_networks_are_cut(hypernet: GHN, networks: list[Network], at_once: int) -> None:
    whole = compute_share(hypernet, networks, SETTINGS)
    parts = compute_share(hypernet, networks, dataclasses.replace(SETTINGS, at_once=at_once))
    halves = [compute_share(hypernet, half, SETTINGS) for half in (networks[:1], networks[1:])]
    assert whole.losses == pytest.approx(parts.losses, rel=1e-12) and sorted(whole.losses) == [0, 1, 2, 3]
    for i, gradient in enumerate(whole.gradients):
        torch.testing.assert_close(parts.gradients[i], gradient, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(halves[0].gradients[i] + halves[1].gradients[i], gradient, rtol=1e-9, atol=1e-12)


def test_exact_gradients_are_the_same_bits_in_any_order(hypernet: GHN, networks: list[Network]) -> None:
    exact = dataclasses.replace(SETTINGS, exact=True)
    whole = compute_share(hypernet, networks, exact).gradients
    for order in ((3, 1, 0, 2), (2, 3, 0, 1)):
        parts = [
            compute_share(hypernet, [networks[i] for i in half], exact).gradients for half in (order[:1], order[1:])
        ]
        assert all(torch.equal(a + b, c) for a, b, c in zip(*parts, whole, strict=True))
    plain = compute_share(hypernet, networks, SETTINGS).gradients
    for found, expected in zip(whole, plain, strict=True):
        torch.testing.assert_close(from_whole(found, torch.float64), expected, rtol=0, atol=1e-12)


def test_no_networks_give_no_gradient(hypernet: GHN) -> None:
    share = compute_share(hypernet, [], SETTINGS)
    assert not share.losses and all(not gradient.any() for gradient in share.gradients)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory: CUDA out of memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "out of memory: ",
        ),
        (MemoryError(), "out of memory"),
        (ValueError("a kernel is larger than the map\nmore"), "ValueError: a kernel is larger than the map"),
    ],
)
def test_a_network_that_raises_is_left_out_and_named(
    hypernet: GHN, networks: list[Network], error: Exception, reason: str
) -> None:
    share = compute_share(hypernet, [networks[0], failing(networks[1], error), *networks[2:]], SETTINGS)
    (skipped,) = share.skipped
    assert skipped["reason"].startswith(reason) and "\n" not in skipped["reason"]
    architecture = networks[1].architecture
    assert skipped["architecture"] == architecture.label and skipped["index"] == architecture.index
    assert skipped["seed"] == 101
    without = compute_share(hypernet, [networks[0], *networks[2:]], SETTINGS)
    assert share.losses == pytest.approx(without.losses, rel=1e-12)
    for found, expected in zip(share.gradients, without.gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_prediction_that_fails_as_a_whole_costs_only_the_network_behind_it(
    hypernet: GHN, networks: list[Network]
) -> None:
    def predictor(graphs):
        if networks[2].architecture.graph in graphs:
            raise torch.OutOfMemoryError("out of memory in the hypernetwork")
        return hypernet(graphs)

    share = compute_share(hypernet, networks, SETTINGS, predictor=predictor)
    assert sorted(share.losses) == [0, 1, 3] and share.skipped[0]["architecture"] == networks[2].architecture.label


def test_a_meta_gradient_that_is_not_finite_is_left_out(hypernet: GHN, networks: list[Network]) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            return gradient * float("nan")

    def predictor(graphs):
        found = hypernet(graphs)
        for graph, prediction in zip(graphs, found, strict=True):
            if graph is networks[3].architecture.graph:
                prediction.update({name: Broken.apply(tensor) for name, tensor in prediction.items()})
        return found

    share = compute_share(hypernet, networks, SETTINGS, predictor=predictor)
    assert sorted(share.losses) == [0, 1, 2] and "not finite" in share.skipped[0]["reason"]
    assert all(torch.isfinite(gradient).all() for gradient in share.gradients)


def test_stopping_is_asked_for_between_networks(hypernet: GHN, networks: list[Network]) -> None:
    asked = iter([False, False, True])
    with pytest.raises(StopRequestedError):
        compute_share(hypernet, networks, SETTINGS, should_stop=lambda: next(asked))


def test_bfloat16_is_for_the_networks_only(networks: list[Network]) -> None:
    torch.manual_seed(0)
    hypernet = GHN(GHNConfig(hid=8, max_shape=(8, 8, 7, 7)))
    images, labels = networks[0].images()
    networks = [network._replace(images=lambda: (images.float(), labels)) for network in networks]
    exact = compute_share(hypernet, networks, SETTINGS)
    rough = compute_share(hypernet, networks, dataclasses.replace(SETTINGS, autocast=torch.bfloat16))
    assert rough.losses != exact.losses and rough.losses == pytest.approx(exact.losses, rel=0.1)
    assert {gradient.dtype for gradient in rough.gradients} == {torch.float32}
