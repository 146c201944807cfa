"""Eight simulated devices: the same learning rate as one, however the work is split, and scalars on the wire."""

import json
import os
import pathlib
import subprocess
import sys

import devices_worker as worker
import numpy as np
import pytest

from gen_optax import ProbeStatus

HERE = pathlib.Path(__file__).parent
# Sums over a batch in another order; where losses are subtracted, their last digits weigh more.
RTOL = 2e-6


@pytest.fixture(scope="session")
def results():
    """What every case returned, in a process that was told of eight devices before it started."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-W", "error", str(HERE / "devices_worker.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.fixture
def result(request, results):
    found = results[request.param]
    assert "error" not in found, found["error"]
    return found


def cases(*starts):
    """Parametrizes `result` over the cases whose names start so."""
    names = [name for name in worker.CASES if name.startswith(starts)]
    assert names
    return pytest.mark.parametrize("result", names, indirect=True, ids=names)


@cases("jit", "shard_map", "pmap")
def test_the_learning_rate_is_that_of_one_device(result, results, request):
    """Rates, reasons and parameters, step by step."""
    reference = results["one device, " + request.node.callspec.id.rsplit(", ", 1)[1]]
    np.testing.assert_allclose(result["rates"], reference["rates"], RTOL)
    assert result["statuses"] == reference["statuses"]
    for name in result.keys() & {"params", "average"}:
        np.testing.assert_allclose(result[name], reference[name], atol=2e-6)
    assert result.get("kept", True), "a parameter has changed its place"


@cases("one device")
def test_there_is_something_to_agree_on(result):
    assert len({rate for (rate,) in result["rates"]}) >= 3
    assert ProbeStatus.ACCEPTED in np.unique(result["statuses"]) or result["rates"][0][0] < 0.1


@pytest.mark.parametrize("options", ["retrospective", "cold start"])
def test_devices_may_train_models_of_their_own(results, options):
    """The state varies over the axis: no error, no average."""
    result, reference = results[f"one model per device, {options}"], results[f"one device, {options}"]
    assert "error" not in result, result["error"]
    np.testing.assert_allclose(result["rates"], reference["rates"], RTOL)
    assert result["distinct"] > 1


def test_shards_have_signs_of_their_own(results):
    """Else what they do together would count alone, and not that some go another way."""
    found = results["alignment of shards"]
    assert found["whole"] == pytest.approx(0.5, abs=0.15)
    assert found["sharded"] == pytest.approx(found["whole"], rel=1e-5)


@cases("NaN")
def test_all_devices_draw_the_same_conclusion(result, request):
    assert len(set(result["rates"])) == 1
    (status,) = set(result["statuses"])
    assert status == (ProbeStatus.OVERSHOOT if "loss" in request.node.callspec.id else ProbeStatus.NOT_FINITE)


@cases("forgotten")
def test_a_forgotten_axis_name_is_an_error_that_names_it(result, request):
    assert result["type"] == "ValueError"
    unchecked = request.node.callspec.id.endswith(("unchecked", "pmap"))
    assert ("pmap or shard_map(check_vma=False)" if unchecked else "differs between the devices") in result["message"]
    two = request.node.callspec.id.endswith("two axes")
    assert f"axis_name={('data', 'replica') if two else 'data'!r}" in result["message"]


def test_an_average_inside_of_an_untyped_loss_is_declared_by_an_empty_axis_name(results):
    assert results["unchecked, declared"] == {"type": None, "message": ""}


def sizes(result, program, kind=None):
    """Bytes of each collective in a program."""
    return [size for k, size in result[program] if kind in (None, k)]


def added(result, kind):
    """The bytes that GeN adds to those of the base step."""
    return sum(sizes(result, "gen", kind)) - sum(sizes(result, "base", kind))


# A derivative along the step travels with what it is the derivative of.
PASSES = {"retrospective": 2, "three points": 2, "exact": 3}


@cases("collectives, data parallel", "collectives, tensor parallel")
def test_a_probe_gathers_no_parameter(result, request):
    """Scalars are reduced; activations that a forward pass exchanges anyway, once per pass of the probe."""
    name = request.node.callspec.id
    assert {kind for kind, _ in result["gen"]} == {"all-reduce"}
    activations = sum(size for size in sizes(result, "forward") if size > 64)
    assert (activations > 0) == ("tensor" in name)
    passes = PASSES.get(name.rsplit(", ", 1)[1], 2)
    assert 0 < added(result, "all-reduce") <= passes * 3 * activations + 64


@cases("collectives, data parallel")
def test_data_parallel_probes_reduce_scalars(result):
    assert added(result, "all-reduce") <= 16
    assert len(result["gen"]) - len(result["base"]) <= 3


@cases("collectives, fully sharded")
def test_a_probe_of_sharded_parameters_gathers_what_its_forward_passes_gather(result, request):
    """A layer's weights have to be where they are used, for a probe as for any forward pass."""
    once = sum(sizes(result, "forward", "all-gather"))
    assert once > 0, "else this tests nothing"
    assert added(result, "all-gather") <= 1.1 * PASSES[request.node.callspec.id.rsplit(", ", 1)[1]] * once
    assert added(result, "all-reduce") <= 128
    assert {kind for kind, _ in result["gen"]} == {"all-gather", "all-reduce"}
