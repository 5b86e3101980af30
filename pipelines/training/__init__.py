"""Distributed meta-training: launch, per-rank loop, data, and training state."""
