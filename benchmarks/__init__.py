"""Benchmarks of gen_optax against tuned baselines and its peers, on real data: `python -m benchmarks --help`."""
