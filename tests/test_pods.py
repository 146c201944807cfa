"""A run of the guide on pods, saved on 8 simulated devices, goes on with fewer devices and with more processes."""

import re
import shutil

import numpy as np
import pytest
import test_guides
from processes import start

PAGE = test_guides.ROOT / "docs" / "guides" / "pods.md"
PARAMETERS = 1_023_410_176  # of the study of scale
BEFORE, ALL = 10, 30


def train(folder, num_steps, shape, num_processes=1):
    """The learning rates from where the folder is on; those of all processes are the same, to the bit."""
    devices = int(np.prod(shape)) // num_processes
    rates = start("pods_worker.py", num_processes, folder, num_steps, *shape, devices=devices)
    assert all(rate == rates[0] for rate in rates)
    return rates[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    assert len(train(folder, BEFORE, (2, 2, 2))) == BEFORE
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupts."""
    rates = train(tmp_path_factory.mktemp("whole"), ALL, (2, 2, 2))
    assert len(set(rates)) > ALL / 2
    return rates


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "shape"),
    [(1, (2, 2, 2)), (1, (1, 2, 2)), (2, (2, 1, 1)), (2, (2, 2, 1)), (4, (2, 2, 1))],
    ids=["8 devices", "4 devices", "2 processes", "2 processes of 2 devices", "4 processes"],
)
def test_it_goes_on(num_processes, shape, saved, whole, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    rates = train(folder, ALL, shape, num_processes)
    assert len(rates) == ALL - BEFORE, "it starts from the checkpoint"
    if num_processes == 1 and shape == (2, 2, 2):
        assert rates == whole[BEFORE:], "to the bit"
    np.testing.assert_allclose(rates, whole[BEFORE:], rtol=1e-4)


def test_the_costs_are_those_of_the_study():
    def rows(text):
        return [line.split(" | ") for line in re.findall(r"^\| (\d.*) \|$", text, re.MULTILINE)]

    study = (test_guides.ROOT / "benchmarks" / "results" / "scale.md").read_text()
    measured = {(row[0], row[1]): row[2:] for row in rows(study)}
    costs = [[cell.split()[0] for cell in row] for row in rows(PAGE.read_text())]
    assert [row[0] for row in costs] == ["8", "64"]
    for devices, before, state, memory, step, probe in costs:
        assert float(probe) == pytest.approx(2 * 4 * PARAMETERS / 2**30, abs=0.01), "weights of two forward passes"
        if measured:  # by today's rule
            base, ours = measured[devices, "base"], measured[devices, "retrospective"]
            assert (base[0], base[3], ours[0], ours[2]) == (before, step, state, memory)
