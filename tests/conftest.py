"""Settings of the test run."""

import hypothesis

# The first example of a property compiles, the others do not: a deadline per example says nothing.
hypothesis.settings.register_profile("gen", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("gen")
