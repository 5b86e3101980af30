"""Prepare an environment once, at installation, so that no job compiles anything when it starts.

Compiles the numba loops into their cache. DeepSpeed's shared-memory operator is not compiled: it is switched off where
training starts (on CPUs gloo does without it), which this checks.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")


def main() -> int:
    """Run one small prediction and its gradient, and look at DeepSpeed; return the exit code."""
    import torch

    from ghn import GHN, GHNConfig, sample_architectures

    graphs = [architecture.graph for architecture in sample_architectures("train", 2, 0)]
    for config in (GHNConfig(), GHNConfig(ve=False)):
        torch.stack([tensor.sum() for part in GHN(config)(graphs) for tensor in part.values()]).sum().backward()
    try:
        import deepspeed
    except ImportError:
        sys.stdout.write("prepared for prediction; deepspeed is not installed, so not for training\n")
        return 0
    if "deepspeed_shm_comm" not in deepspeed.ops.__compatible_ops__:
        sys.stderr.write("this deepspeed has no operator deepspeed_shm_comm to switch off; see infra/prepare.py\n")
        return 1
    sys.stdout.write(f"prepared: torch {torch.__version__}, deepspeed {deepspeed.__version__}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
