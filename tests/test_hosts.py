"""Two processes on this machine, joined by `jax.distributed`, train as one does."""

import numpy as np
import pytest
from processes import start


@pytest.fixture(scope="module")
def alone():
    (result,) = start("hosts_worker.py", 1)
    return result


@pytest.fixture(scope="module")
def together():
    return start("hosts_worker.py", 2)


def test_two_processes_agree_to_the_bit(together):
    """Else they would drift apart: each computes the learning rate by itself."""
    first, second = together
    assert first["pid"] != second["pid"]
    for field in ("rates", "statuses", "params"):
        assert first[field] == second[field]


def test_two_processes_find_what_one_finds(together, alone):
    np.testing.assert_allclose(together[0]["rates"], alone["rates"], rtol=5e-6)
    np.testing.assert_allclose(together[0]["params"], alone["params"], atol=2e-6)
    assert together[0]["statuses"] == alone["statuses"]
    assert len(set(alone["rates"])) > 3
