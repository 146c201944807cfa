"""The example script trains on 8 simulated devices, stops where it is told to, and goes on to the bit."""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import processes
import pytest

pytest.importorskip("grain")

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_lm.py"
SETTINGS = {"batch-size": 8, "length": 32, "width": 32, "depth": 1, "num-heads": 2, "log-every": 1, "save-every": 5}
TINY = [f"--{name}={value}" for name, value in SETTINGS.items()]
NUM_STEPS = 30
HORIZON = [f"--num-steps={NUM_STEPS}"]
TIMEOUT = 600  # seconds, on a busy machine


@contextlib.contextmanager
def running(folder, *options):
    """The script in a process of its own, which does not outlive the block."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
    }
    command = [sys.executable, "-W", "error", str(SCRIPT), str(folder), *TINY, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def output(process) -> str:
    """What it printed, when it is done."""
    out, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    return out


def wait_for_steps(process, folder, number: int) -> None:
    """Until that many are logged."""
    deadline = time.monotonic() + TIMEOUT
    while len(logged(folder)) < number:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no steps"
        time.sleep(0.05)


def logged(folder, process_id=0) -> list[dict]:
    path = folder / f"metrics_{process_id}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in one go: what it logged, what it printed, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    with running(folder, *HORIZON) as process:
        out = output(process)
    return logged(folder), out, folder


def test_it_trains(whole):
    log, _, _ = whole
    losses = [line["loss"] for line in log]
    assert [line["step"] for line in log] == [*range(1, NUM_STEPS + 1)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 1
    assert log[-1]["notices"] == 0


def test_it_says_what_it_found(whole):
    log, out, _ = whole
    rate = re.search(rf"step {NUM_STEPS}: learning rate (\S+), found with (\d+) probes", out)
    assert float(rate[1]) == pytest.approx(log[-1]["learning_rate"], rel=1e-2)
    assert int(rate[2]) == log[-1]["num_probes"] > 0
    assert float(re.search(r"validation loss (\S+) nats", out)[1]) < log[0]["loss"] - 1


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(whole, tmp_path):
    with running(tmp_path, *HORIZON) as process:
        wait_for_steps(process, tmp_path, 13)
    before = len(logged(tmp_path))
    assert before < NUM_STEPS
    with running(tmp_path, *HORIZON) as process:
        out = output(process)
    log = logged(tmp_path)
    assert log[before]["step"] > 5, "it goes on from a checkpoint"
    assert log[before:] == whole[0][log[before]["step"] - 1 :]
    assert log[:before] == whole[0][:before]
    assert out == whole[1]


@pytest.mark.slow
def test_two_hosts_go_on_from_one(whole, tmp_path):
    log, _, saved = whole
    folder = shutil.copytree(saved, tmp_path / "copy", ignore=shutil.ignore_patterns("metrics_*", str(NUM_STEPS)))
    processes.start("examples_worker.py", 2, SCRIPT, folder, *TINY, *HORIZON, devices=4)
    first, second = logged(folder), logged(folder, process_id=1)
    assert first == second
    assert [line["step"] for line in first] == [*range(NUM_STEPS - 4, NUM_STEPS + 1)]
    for name in ("loss", "learning_rate"):  # bfloat16 adds up in another order
        expected = [line[name] for line in log[-5:]]
        np.testing.assert_allclose([line[name] for line in first], expected, rtol=5e-3)


@pytest.mark.slow
def test_an_open_end_stops_at_control_c(tmp_path):
    with running(tmp_path) as process:
        wait_for_steps(process, tmp_path, 8)
        process.send_signal(signal.SIGINT)
        out = output(process)
    last = logged(tmp_path)[-1]["step"]
    assert f"step {last}: learning rate" in out
    assert re.search(r"validation loss \S+ nats per byte", out)
    assert (tmp_path / str(last)).is_dir(), "the step at which it stopped is saved"


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_share_the_batches_of_one(num_hosts, monkeypatch):
    """The same examples at the same step, whatever the number of hosts: a step number is the place in the data."""
    specification = importlib.util.spec_from_file_location("train_lm", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    monkeypatch.setattr(jax, "make_array_from_process_local_data", lambda sharding, x: x)
    args = types.SimpleNamespace(length=4, seed=0, accumulation=2, batch_size=8)
    tokens = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8)

    def examples(index, count, begin):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(jax, "process_count", lambda: count)
        batch = next(script.batches(tokens, begin, args, None))
        assert batch.shape == (2, 8 // count, 5)
        return batch.reshape(-1, 5)

    alone = [examples(0, 1, begin) for begin in (0, 3, 20)]
    assert not np.array_equal(alone[0], alone[1])
    for begin, expected in zip((0, 3, 20), alone, strict=True):
        shares = np.concatenate([examples(i, num_hosts, begin) for i in range(num_hosts)])
        assert sorted(map(tuple, shares)) == sorted(map(tuple, expected))
