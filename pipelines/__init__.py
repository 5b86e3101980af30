"""The jobs around the library: shard, train, register, evaluate, predict, and the ``ghn`` command line."""
