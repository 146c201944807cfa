"""Settings of the test run.

What a test compiles runs a few times only, so XLA compiles it without optimising, which takes a seventh of the time.
`GEN_OPTAX_XLA=default` leaves XLA as users have it; `.ci/run` tests the core so as well, and what compares with a
reference to rounding (the marker `rounding`) is only run so: sums without vector units round more.
"""

import importlib.metadata
import os

major, minor = map(int, importlib.metadata.version("jaxlib").split(".")[:2])
IS_UNOPTIMISED = os.environ.get("GEN_OPTAX_XLA") != "default" and (major, minor) >= (0, 10)
if IS_UNOPTIMISED:
    flags = ["xla_backend_optimization_level=0", "xla_cpu_parallel_codegen_split_count=1"]
    if (major, minor) == (0, 10):  # later ones end the process at a flag that is no longer theirs
        flags.append("xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *(f"--{flag}" for flag in flags)])

import hypothesis
import jax
import jax.experimental
import pytest

if not hasattr(jax, "enable_x64"):  # the oldest jax that is supported has it under another name
    jax.enable_x64 = jax.experimental.enable_x64

# Scripts of `.ci/frameworks`, each for an environment of its own.
collect_ignore = ["frameworks"]

# The first example of a property compiles, the others do not: a deadline per example says nothing.
hypothesis.settings.register_profile("gen", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("gen")


def pytest_collection_modifyitems(items):
    """Skips what asks for rounding as users have it."""
    for item in items:
        if IS_UNOPTIMISED and item.get_closest_marker("rounding"):
            item.add_marker(pytest.mark.skip(reason="compares to rounding: GEN_OPTAX_XLA=default"))
