"""Where images come from: what `ghn shard images` can read, and how it is split."""

from pipelines.sources.opening import ImageSource, open_source

__all__ = ["ImageSource", "open_source"]
