"""Objects in local folders and on S3 behind one interface, and a cache of what was read."""

from pipelines.storage.cache import ReadCache
from pipelines.storage.local import LocalStore
from pipelines.storage.opening import open_store
from pipelines.storage.store import Store

__all__ = ["LocalStore", "ReadCache", "Store", "open_store"]
