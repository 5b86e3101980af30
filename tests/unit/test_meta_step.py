"""`ghn.meta_step`: its gradient is the gradient of eq. 1, and bad networks take no part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ghn import GHN, GHNConfig, sample_architectures
from ghn.functional import run_network
from ghn.meta_step import meta_step


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(8, 3, 16, 16), torch.randint(10, (8,))


def architectures(count: int):
    return [
        a
        for a in sample_architectures("train", 60, 0, image_size=16, channels=(8,), fc_dims=(32,))
        if a.spec.fc_layers == 1 and len(a.graph) < 120
    ][:count]


@pytest.fixture
def hypernet() -> GHN:
    torch.manual_seed(0)
    return GHN(GHNConfig(hid=8, max_shape=(8, 8, 7, 7)))


def test_gradient_is_that_of_the_mean_loss(hypernet: GHN, batch) -> None:
    images, labels = batch[0].double(), batch[1]
    hypernet.double()
    nets = architectures(3)
    outcome = meta_step(hypernet, nets, [(images, labels)] * 3, weight=1 / 3)
    outcome.loss.backward()
    found = {name: p.grad.clone() for name, p in hypernet.named_parameters() if p.grad is not None}
    hypernet.zero_grad()
    losses = [
        F.cross_entropy(run_network(net.network(device="meta").train(), parameters, images), labels)
        for net, parameters in zip(nets, hypernet([net.graph for net in nets]), strict=True)
    ]
    torch.stack(losses).mean().backward()
    assert outcome.losses == pytest.approx([loss.item() for loss in losses], rel=1e-9)
    assert outcome.loss.item() == pytest.approx(sum(outcome.losses) / 3)
    for name, parameter in hypernet.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_smoothed_labels_give_every_class_a_part(hypernet: GHN, batch) -> None:
    images, labels = batch[0].double(), batch[1]
    hypernet.double()
    (net,) = architectures(1)
    outcome = meta_step(hypernet, [net], [(images, labels)], weight=1.0, label_smoothing=0.3)
    (parameters,) = hypernet([net.graph])
    log_p = run_network(net.network(device="meta").train(), parameters, images).log_softmax(1)
    target = torch.full_like(log_p, 0.03).scatter_(1, labels[:, None], 0.73)
    assert outcome.losses == pytest.approx([-(target * log_p).sum(1).mean().item()], rel=1e-9)


MODELS = {
    "ghn2": GHNConfig(hid=8, max_shape=(8, 8, 7, 7)),
    "ghn1": GHNConfig(hid=8, max_shape=(8, 8, 7, 7), ve=False, weight_norm=False, layernorm=False),
    "mlp": GHNConfig(hid=8, max_shape=(8, 8, 7, 7), hypernet="mlp"),
}


@pytest.mark.parametrize("model", MODELS)
def test_each_model_learns(model: str) -> None:
    """The networks of the last steps are right where those of the first steps guessed (with these few, only seen ones)."""
    torch.manual_seed(0)
    labels = torch.arange(16) % 2  # two classes: stripes along the rows or along the columns
    stripes = torch.sin(torch.arange(16.0)).expand(16, 16)
    images = torch.stack([stripes if label else stripes.T for label in labels])[:, None].expand(-1, 3, -1, -1)
    batch = images + 0.1 * torch.randn(16, 3, 16, 16), labels
    hypernet = GHN(MODELS[model])
    before = {name: tensor.clone() for name, tensor in hypernet.state_dict().items()}
    nets = [net for net in architectures(10) if net.spec.norm == "bnorm"]
    optimizer = torch.optim.Adam(hypernet.parameters(), lr=3e-3)
    losses = []
    for step in range(100):
        optimizer.zero_grad()
        pair = [nets[step % len(nets)], nets[(step + 1) % len(nets)]]
        outcome = meta_step(hypernet, pair, [batch] * 2, weight=0.5)
        outcome.loss.backward()
        torch.nn.utils.clip_grad_norm_(hypernet.parameters(), 5.0)
        optimizer.step()
        losses += outcome.losses
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    assert all(not torch.equal(tensor, before[name]) for name, tensor in hypernet.state_dict().items())


def test_network_clip_bounds_each_networks_gradient(hypernet: GHN, batch) -> None:
    net = architectures(1)
    gradients = []
    for clip in (None, 1e-6, 1e9):
        hypernet.zero_grad()
        meta_step(hypernet, net, [batch], weight=1.0, network_clip=clip).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in hypernet.parameters() if p.grad is not None]))
    free, clipped, loose = gradients
    assert clipped.norm() < 1e-3 * free.norm()
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loose, free)


def test_non_finite_networks_are_skipped_and_named(hypernet: GHN, batch) -> None:
    nets = architectures(2)

    def broken(graphs):
        good, bad = hypernet(graphs)
        return [good, {name: tensor * float("nan") for name, tensor in bad.items()}]

    outcome = meta_step(broken, nets, [batch, batch], weight=0.5)
    assert outcome.skipped == ((1, nets[1].label, "non-finite loss"),) and len(outcome.losses) == 1
    outcome.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in hypernet.parameters() if p.grad is not None)
    nothing = meta_step(lambda graphs: [broken(2 * graphs)[1]], nets[:1], [batch], weight=1.0)
    assert nothing.loss is None and nothing.losses == ()
