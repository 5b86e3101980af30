"""Graph HyperNetworks: predict the parameters of a network from its computational graph, in one forward pass.

The public names are those below; everything reads in the order of the data's way: genotype, space, networks, graph,
hypernet, prediction, meta-step, evaluation, checkpoint.
"""

from ghn.compat import declare_torchvision_operators

declare_torchvision_operators()  # before anything may import torchvision

from ghn.architecture import Architecture, ModelSpec, sample_architectures
from ghn.checkpoint import load_checkpoint, save_checkpoint
from ghn.deepnets import read_deepnets
from ghn.genotype import ArchitectureSpec, Genotype
from ghn.graph import ArchitectureGraph
from ghn.hypernet import GHN, GHNConfig
from ghn.initialize import calibrate_batchnorm, initialize
from ghn.prediction import Coverage, coverage, predict
from ghn.small_images import adjust_for_small_images
from ghn.tracing import trace

__version__ = "0.1.0"

__all__ = [
    "GHN",
    "Architecture",
    "ArchitectureGraph",
    "ArchitectureSpec",
    "Coverage",
    "GHNConfig",
    "Genotype",
    "ModelSpec",
    "adjust_for_small_images",
    "calibrate_batchnorm",
    "coverage",
    "initialize",
    "load_checkpoint",
    "predict",
    "read_deepnets",
    "sample_architectures",
    "save_checkpoint",
    "trace",
]
