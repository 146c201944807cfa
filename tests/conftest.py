"""Settings of the test run."""

import hypothesis
import jax
import jax.experimental

if not hasattr(jax, "enable_x64"):  # the oldest jax that is supported has it under another name
    jax.enable_x64 = jax.experimental.enable_x64

# The first example of a property compiles, the others do not: a deadline per example says nothing.
hypothesis.settings.register_profile("gen", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("gen")
