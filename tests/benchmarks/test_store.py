"""The store: what is kept of a cell, in which bytes, and what interruption and company do to it."""

import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path):
    return store.Store(tmp_path)


def cell(seed=1, method="momo", **changes):
    return {"key": {"workload": "toy", "method": method, "seed": seed}, **changes}


def test_cells_come_back_as_they_were_put(results):
    cells = [cell(seed, commit=None, versions={"jax": "0.8"}) for seed in (1, 2, 10)] + [cell(method="zoom")]
    for one in reversed(cells):
        results.put(one)
    assert list(results.cells()) == list(store.Store(results.root).cells()) == cells
    assert list(results.cells("toy", "zoom")) == cells[3:]
    assert list(results.cells("other")) == []
    assert results.workloads() == ["toy"]
    assert results.find(cells[1]["key"]) == cells[1]


def test_a_cell_takes_the_place_of_one_with_its_key(results):
    results.put(cell(steps=1))
    results.put(cell(steps=2))
    assert list(results.cells()) == [cell(steps=2)]


def test_the_same_cells_are_the_same_bytes(tmp_path):
    one, other = store.Store(tmp_path / "one"), store.Store(tmp_path / "other")
    cells = [cell(seed, final={"b": 1.0, "a": 2.0}) for seed in range(5)]
    for entry in cells:
        one.put(entry)
    for entry in reversed(cells):
        other.put({**entry, "final": {"a": 2.0, "b": 1.0}})
    files = [(each.root / "runs" / "toy.jsonl.gz").read_bytes() for each in (one, other)]
    assert files[0] == files[1]
    assert files[0][3:8] == bytes(5)  # no name and no time in the header
    lines = gzip.decompress(files[0]).decode().splitlines()
    assert [json.loads(line)["key"]["seed"] for line in lines] == list(range(5))


def test_another_process_is_seen(results):
    other = store.Store(results.root)
    results.put(cell(1))
    assert other.find(cell(1)["key"]) is not None
    results.put(cell(2))
    assert [entry["key"]["seed"] for entry in other.cells()] == [1, 2]


def test_two_processes_may_write_at_the_same_time(results):
    program = (
        "import sys; from benchmarks import store; results = store.Store(sys.argv[1])\n"
        "for seed in range(int(sys.argv[2]), 60, 2):\n"
        "    results.put({'key': {'workload': 'toy', 'method': 'momo', 'seed': seed}})\n"
        "    results.set_note('rows', lambda rows: [*(rows or []), {'key': seed}])\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(results.root), str(first)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        )
        for first in (0, 1)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert [entry["key"]["seed"] for entry in results.cells()] == list(range(60))
    assert sorted(row["key"] for row in results.note("rows")) == list(range(60))


def test_an_interrupted_write_leaves_the_old_file_whole(results, monkeypatch):
    results.put(cell(old=True))
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            results.put(cell(old=False))
    assert results.find(cell()["key"])["old"]
    assert [path.name for path in (results.root / "runs").iterdir()] == ["toy.jsonl.gz"]


def test_removing_cells(results):
    for seed in range(4):
        results.put(cell(seed))
    assert results.remove(lambda entry: entry["key"]["seed"] % 2 == 0) == 2
    assert [entry["key"]["seed"] for entry in results.cells()] == [1, 3]
    assert results.remove(lambda entry: True) == 2
    assert not list((results.root / "runs").iterdir())


def test_measurements_are_lines_and_choices_are_json(results):
    results.set_note("rows", lambda rows: [{"key": 1, "ratio": 1.23456789}, {"key": 0, "ratio": math.nan}])
    results.set_note("tuned", lambda _: {"b": 1, "a": math.inf})
    assert results.note("rows") == [{"key": 1, "ratio": 1.23457}, {"key": 0, "ratio": None}]
    assert (results.root / "tuned.json").read_text() == '{\n "a": null,\n "b": 1\n}\n'
    assert results.measurements() == ["rows"]
    results.set_note("rows", lambda rows: None)
    assert results.note("rows") is None
    assert results.measurements() == []


def test_curves_are_made_light():
    steps = list(range(10, 1001, 10))
    rates = [0.5, math.nan, *([0.1] * 98)]
    kept = store.light(cell(curves={"step": steps, "loss": [float(step) for step in steps], "learning_rate": rates}))
    assert kept["curves"]["step"] == list(range(50, 1001, 50))
    assert kept["curves"]["loss"] == pytest.approx([step - 20 for step in range(50, 1001, 50)])
    assert kept["first_loss"] == 10
    assert kept["highest_learning_rate"] == 0.5
    assert store.light(kept) is kept
    assert store.light(cell()) == cell()


def test_windows_weigh_their_points_by_the_steps_behind_them():
    curves = {"step": [1, 10, 11, 20], "loss": [1.0, 2.0, 3.0, None], "learning_rate": [4, 3, 2, 1]}
    kept = store.thinned(curves, 2)
    assert kept["step"] == [10, 20]
    assert kept["learning_rate"] == [3, 1]
    assert kept["loss"][0] == pytest.approx(1.9)
    assert math.isnan(kept["loss"][1])
    np.testing.assert_equal(store.thinned(curves, 4), {**curves, "loss": [1.0, 2.0, 3.0, math.nan]})
