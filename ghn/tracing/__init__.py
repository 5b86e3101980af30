"""From any ``nn.Module`` to its graph: :func:`trace` runs it once on meta tensors and follows every torch call."""

from ghn.tracing.trace import trace

__all__ = ["trace"]
