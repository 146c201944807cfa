"""Processes on this machine that `jax.distributed` joins, as the hosts of a pod."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

HERE = pathlib.Path(__file__).parent
TIMEOUT = 600  # seconds, on a busy machine


def start(worker: str, num_processes: int, *arguments: Any, devices: int = 1) -> list[Any]:
    """What each process prints as JSON. None of them outlives this call.

    A worker is run as `worker PROCESS_ID NUM_PROCESSES PORT *arguments`, with as many devices as are asked for.
    """
    try:
        return _start(worker, num_processes, arguments, devices)
    except ConnectionError:  # another program may have taken the port between its choice and its use
        return _start(worker, num_processes, arguments, devices)


def _start(worker: str, num_processes: int, arguments: tuple[Any, ...], devices: int) -> list[Any]:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    port = _free_port()
    with contextlib.ExitStack() as stack:
        processes = []
        for i in range(num_processes):
            command = [sys.executable, str(HERE / worker), *map(str, (i, num_processes, port, *arguments))]
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)  # runs before the context waits for its end
            processes.append(process)
        outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode != 0:
            raise ConnectionError(errors) if num_processes > 1 else RuntimeError(errors)
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def join(process_id: int, num_processes: int, port: int) -> None:
    """What a worker does first of all."""
    import jax

    if num_processes > 1:
        address = f"127.0.0.1:{port}"
        jax.distributed.initialize(
            address, num_processes, process_id, initialization_timeout=120, coordinator_bind_address=address
        )


def leave(num_processes: int) -> None:
    """What a worker does last."""
    import jax

    if num_processes > 1:
        jax.distributed.shutdown()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
