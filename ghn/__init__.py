"""Graph HyperNetworks: predict the parameters of a network from its computational graph, in one forward pass.

The public names are those in ``__all__``. The modules read in the order of the data's way, each importing only earlier
ones: errors, genotype, layout, space, networks (functional), graph (paths, graph_builder, build, tracing), architecture
(deepnets), hypernet, prediction (initialize), checkpoint, meta_step, evaluation (sgd). Beside the way lie cost and draw.
"""

from ghn.compat import declare_torchvision_operators

declare_torchvision_operators()  # before anything may import torchvision

from ghn.architecture import Architecture, sample_architectures
from ghn.checkpoint import load_checkpoint, save_checkpoint
from ghn.deepnets import read_deepnets
from ghn.errors import DataError, GHNError, InputError
from ghn.genotype import ArchitectureSpec, Genotype, ModelSpec
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
    "DataError",
    "GHNConfig",
    "GHNError",
    "Genotype",
    "InputError",
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
