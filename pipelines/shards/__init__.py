"""Shard sets: WebDataset tars with a manifest, on S3 or in a folder."""
