"""The hypernetwork against the oracle of the tests, which works as the published code does."""

from __future__ import annotations

from pipelines.process import tune_process

if __name__ != "__main__":
    tune_process()  # a part that measures memory wants to see freed memory go

import gc
import json
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import THREADS, Report, forget_peak, in_process, medians, memory
from ghn import GHN, Architecture, ArchitectureGraph, ArchitectureSpec, Genotype, sample_architectures
from tests import oracle

FIRST = 18
"""The training networks 18 to 25 of seed 0: 1,368 nodes, 147,178 virtual edges, 10.0 million parameters."""


def meta_batch() -> list[ArchitectureGraph]:
    graphs = [architecture.graph for architecture in sample_architectures("train", 8, 0, start=FIRST)]
    for graph in graphs:
        graph.distances  # noqa: B018 -- read with the architecture
    return graphs


def backward(predictions: list[dict[str, Tensor]], gradients: list[Tensor]) -> None:
    torch.autograd.backward([tensor for part in predictions for tensor in part.values()], gradients)


def random_gradients(hypernet: GHN, graphs: list[ArchitectureGraph]) -> list[Tensor]:
    with torch.no_grad():
        return [torch.randn_like(tensor) for part in hypernet(graphs) for tensor in part.values()]


def measure(report: Report) -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    hypernet, graphs = GHN(), meta_batch()
    edges, sizes = oracle.edges(graphs), [len(graph) for graph in graphs]
    states = oracle.embeddings(hypernet, graphs).detach().requires_grad_()

    def gnn() -> None:
        hypernet.gnn(states, hypernet.collate(graphs)).sum().backward()

    def plain_gnn() -> None:
        oracle.message_passing(hypernet, states, edges, sizes).sum().backward()

    fast, slow = medians(7, gnn, plain_gnn)
    report.row("gnn_step", slow / fast, "x faster than the oracle", at_least=12, seconds=fast, oracle_seconds=slow)
    gradients = random_gradients(hypernet, graphs)

    def predict() -> None:
        backward(hypernet(graphs), gradients)

    def plain_predict() -> None:
        backward(oracle.predict(hypernet, graphs, edges), gradients)

    fast, slow = medians(15, predict, plain_predict)
    report.row("predict_step", slow / fast, "x faster than the oracle", at_least=8, seconds=fast, oracle_seconds=slow)
    report.row(
        "predict_step_memory",
        in_process("hypernetwork", "memory", lean=True)["ratio"],
        "x parameters, activations",
        at_most=1.5,
    )
    grow_with_nodes(report)


def peak_memory() -> dict[str, float]:
    """Memory of one prediction with its gradient, over the predicted parameters and the graph network's activations."""
    torch.set_num_threads(THREADS)
    hypernet, graphs = GHN(), meta_batch()
    small = sample_architectures("val", 1, 0)[0].graph
    backward(hypernet([small]), random_gradients(hypernet, [small]))  # loads libraries, makes the weights' gradients
    gradients = random_gradients(hypernet, graphs)
    gc.collect()
    before = forget_peak()
    backward(hypernet(graphs), gradients)
    used = memory("VmHWM") - before
    hid = hypernet.config.hid
    activations = (
        2 * sum(map(len, graphs)) * (hid * (1 + 3 + 3 + 1) + 2 * (hid // 2 + hid)) * 4
    )  # two sweeps, two kinds
    return {"ratio": used / (sum(tensor.numel() * 4 for tensor in gradients) + activations)}


def chain(cells: int) -> Architecture:
    """A network of so many equal cells with 14 nodes each, and few parameters."""
    cell = (("sep_conv_3x3", 0), ("dil_conv_3x3", 1), ("max_pool_3x3", 1), ("skip_connect", 2))
    genotype = Genotype(normal=cell, normal_concat=(3,), reduce=cell, reduce_concat=(3,))
    widths: dict[str, Any] = {"C": 16, "C_mult": 1, "fc_layers": 1, "fc_dim": 64}
    stem: dict[str, Any] = {"norm": "bnorm", "preproc": True, "ks": 3, "stem_type": 0, "stem_pool": False}
    return Architecture(spec=ArchitectureSpec(genotype=genotype, n_cells=cells, glob_avg=True, **stem, **widths))


def grow_with_nodes(report: Report) -> None:
    for cells in (3, 7, 14, 28, 57, 100):
        report.grow("prediction, by nodes", **in_process("hypernetwork", str(cells)))


def cost_of_chain(cells: int) -> dict[str, float]:
    """Time and memory of a prediction and its gradient."""
    torch.set_num_threads(THREADS)
    hypernet, graph = GHN(), chain(cells).graph
    small = chain(3).graph
    backward(hypernet([small]), random_gradients(hypernet, [small]))
    gradients = random_gradients(hypernet, [graph])
    before = forget_peak()
    backward(hypernet([graph]), gradients)
    megabytes = (memory("VmHWM") - before) / 1e6
    (taken,) = medians(5, lambda: backward(hypernet([graph]), gradients))
    return {
        "nodes": len(graph),
        "edges": len(graph.edges) + len(graph.virtual_edges()[0]),
        "parameters": sum(tensor.numel() for tensor in gradients),
        "milliseconds": round(1e3 * taken, 2),
        "megabytes": round(megabytes, 1),
    }


if __name__ == "__main__":
    part = sys.argv[1]
    sys.stdout.write(json.dumps(peak_memory() if part == "memory" else cost_of_chain(int(part))) + "\n")
