"""The graph hypernetwork: embedding -> graph network -> decoders -> normalization."""

from ghn.hypernet.config import GHNConfig
from ghn.hypernet.model import GHN

__all__ = ["GHN", "GHNConfig"]
