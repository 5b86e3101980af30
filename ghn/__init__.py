"""Graph HyperNetworks: predict the parameters of a network from its computational graph, in one forward pass.

The public names are those below; everything reads in the order of the data's way: genotype, space, networks, graph,
hypernet, prediction, meta-step, evaluation, checkpoint.
"""

from ghn.compat import declare_torchvision_operators

declare_torchvision_operators()  # before anything may import torchvision

from ghn.architecture import Architecture, ModelSpec, sample_architectures  # noqa: E402
from ghn.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from ghn.genotype import ArchitectureSpec, Genotype  # noqa: E402
from ghn.graph import ArchitectureGraph  # noqa: E402
from ghn.hypernet import GHN, GHNConfig  # noqa: E402
from ghn.prediction import predict  # noqa: E402
from ghn.trace import trace  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "GHN",
    "Architecture",
    "ArchitectureGraph",
    "ArchitectureSpec",
    "GHNConfig",
    "Genotype",
    "ModelSpec",
    "load_checkpoint",
    "predict",
    "sample_architectures",
    "save_checkpoint",
    "trace",
]
