"""`ghn.functional`: networks run from their layout equal their modules: values, gradients, dropout."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghn import Architecture, ArchitectureSpec, Genotype
from ghn.architecture import predefined_architectures
from ghn.functional import run_network
from ghn.genotype import OPS
from ghn.layout import is_connected
from tests.strategies import architectures


def _compare(architecture: Architecture, *, training: bool, batch: int = 2) -> None:
    torch.manual_seed(0)
    network = architecture.network().double().train(training)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.3)  # also norms and biases, which begin as ones and zeros
    size = architecture.spec.image_size
    images = torch.randn(batch, 3, size, size, dtype=torch.float64)
    results = []
    for channels_last in (None, False, True):
        torch.manual_seed(1)  # of dropout
        parameters = {name: tensor.detach().requires_grad_() for name, tensor in network.named_parameters()}
        if channels_last is None:
            logits = run_network(network, parameters, images)
        else:
            memory_format = torch.channels_last if channels_last else torch.contiguous_format
            x = images.contiguous(memory_format=memory_format)
            logits = architecture.run(parameters, x, training=training)
        factor = torch.arange(logits.numel(), dtype=torch.float64).view_as(logits).cos()
        results.append([logits, *torch.autograd.grad((logits * factor).sum(), list(parameters.values()))])
    largest = max(float(tensor.detach().norm()) for tensor in results[0])
    for other in results[1:]:
        for one, tensor in zip(results[0], other, strict=True):  # deep networks on tiny maps magnify rounding
            assert float((tensor - one).detach().norm()) <= 1e-5 * float(one.detach().norm()) + 1e-7 * largest


@given(architecture=architectures(), training=st.booleans())
@settings(max_examples=15, deadline=None)
def test_sampled_networks_give_the_same_logits_and_gradients(architecture: Architecture, training: bool) -> None:
    _compare(architecture, training=training)


@pytest.mark.parametrize("op", [op for op in OPS if op != "none"])
@pytest.mark.parametrize("size", [16, 21])  # odd maps too
def test_every_operation_in_both_strides(op: str, size: int) -> None:
    cell = (("conv_1x1", 1), (op, 0), (op, 1), ("skip_connect", 2))
    spec = ArchitectureSpec(
        genotype=Genotype(normal=cell, normal_concat=(2, 3), reduce=cell, reduce_concat=(3,)),
        n_cells=4,
        C=8,
        C_mult=2,
        norm="bnorm",
        preproc=True,
        ks=3,
        stem_type=0,
        stem_pool=False,
        glob_avg=True,
        fc_layers=2,
        fc_dim=16,
        image_size=size,
    )
    _compare(Architecture(spec=spec), training=True)


@pytest.mark.parametrize("stem_type", [0, 1])
def test_stems_of_large_images(stem_type: int) -> None:
    cell = (("dil_conv_5x5", 0), ("max_pool_3x3", 1))
    spec = ArchitectureSpec(
        genotype=Genotype(normal=cell, normal_concat=(2,), reduce=cell, reduce_concat=(2,)),
        n_cells=3,
        C=8,
        C_mult=1,
        norm=None,
        preproc=True,
        ks=7,
        stem_type=stem_type,
        stem_pool=stem_type == 0,
        glob_avg=False,
        fc_layers=1,
        fc_dim=16,
        image_size=224,
    )
    _compare(Architecture(spec=spec), training=False)


def test_the_predefined_networks() -> None:
    for architecture in predefined_architectures(image_size=32):
        _compare(architecture, training=False)


def test_a_missing_state_is_zeros() -> None:
    reduce = (("max_pool_3x3", 0), ("skip_connect", 1), ("none", 0), ("none", 1))
    spec = ArchitectureSpec(
        genotype=Genotype(
            normal=(("conv_3x3", 0), ("none", 1), ("conv_1x1", 2), ("none", 0)),
            normal_concat=(3,),
            reduce=reduce,
            reduce_concat=(2, 3),
        ),
        n_cells=3,
        C=8,
        C_mult=1,
        norm="bnorm",
        preproc=True,
        ks=3,
        stem_type=0,
        stem_pool=False,
        glob_avg=True,
        fc_layers=1,
        fc_dim=32,
        image_size=16,
    )
    _compare(Architecture(spec=spec), training=True)
    dead = dataclasses.replace(spec.genotype, reduce=(("none", 0), ("none", 1)) * 2)
    assert not is_connected(dataclasses.replace(spec, genotype=dead))
