"""The networks of the benchmark, in flax.linen; every one is called as ``model(inputs, train=...)``."""
