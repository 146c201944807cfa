"""Two processes on this machine, joined by `jax.distributed`, train as one does."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
TIMEOUT = 240


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def train(num_processes: int) -> list[dict]:
    """Starts the processes and collects what they print. None of them outlives this call."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    port = str(free_port())
    with contextlib.ExitStack() as stack:
        processes = []
        for i in range(num_processes):
            command = [sys.executable, str(HERE / "hosts_worker.py"), str(i), str(num_processes), port]
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)  # runs before the context waits for its end
            processes.append(process)
        outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode != 0:
            raise RuntimeError(errors)
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.fixture(scope="module")
def alone():
    (result,) = train(1)
    return result


@pytest.fixture(scope="module")
def together():
    try:
        return train(2)
    except RuntimeError:  # another program may have taken the port between its choice and its use
        return train(2)


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
