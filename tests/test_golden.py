"""The default optimizer does what it did when its traces were stored; see golden.py for what the problems reach."""

import os
import pathlib
import subprocess
import sys

import golden
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
# Other processors and versions of XLA round differently. Parameters that start a millionth elsewhere move a rate by
# less than a fifth of this.
RTOL = 1e-3


@pytest.fixture(scope="module")
def stored():
    return golden.load()


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """The traces of today, from a process that has eight devices."""
    file = tmp_path_factory.mktemp("golden") / "traces.npz"
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "error", str(HERE / "golden.py"), "--into", str(file)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return golden.load(file)


def test_the_stored_traces_reach_every_phase(stored):
    golden.check(stored)


@pytest.mark.parametrize("name", golden.PROBLEMS)
def test_the_trace_is_the_stored_one(name, traces, stored):
    for field in ("statuses", "probes"):
        calls = 1 + np.flatnonzero(traces[name][field] != stored[name][field])
        assert not calls.size, f"{field} differ at {calls.size} calls, the first of them {calls[0]}"
    for field in ("rates", "norms", "params"):
        np.testing.assert_allclose(traces[name][field], stored[name][field], RTOL, err_msg=field)
