"""The tuner: where the grid grows, and what it takes for the best."""

import dataclasses
import math

import pytest
from toy import toy

from benchmarks import runner, store, tune


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (-4, {-6, -5, -4, -3}),
        (-7, {-8, -7, -6, -5, -4, -3}),
        (0, {-6, -5, -4, -3, -2, -1, 0, 1}),
    ],
)
def test_the_grid_grows_at_an_edge(best, tried):
    seen = []

    def costs_of(exponents):
        assert not set(exponents) & set(seen)
        seen.extend(exponents)
        return {exponent: (abs(exponent - best), 0) for exponent in exponents}

    costs = tune.search(costs_of, range(-6, -2))
    assert min(costs, key=costs.__getitem__) == best
    assert set(seen) == set(costs) == tried


def test_the_grid_ends_where_everything_diverges():
    costs = tune.search(lambda exponents: {exponent: (math.inf, math.inf) for exponent in exponents}, range(-6, 0))
    assert {math.inf} == {cost for cost, _ in costs.values()}
    assert min(costs) >= -20


def test_cost_is_the_metric_then_the_loss():
    def cell(loss, accuracy, diverged=False):
        return {
            "diverged": diverged,
            "final": {"validation": {"loss": loss, "accuracy": accuracy}},
            "workload": {"metric": "accuracy", "higher_is_better": True},
        }

    order = [cell(2.0, 0.9), cell(0.5, 0.8), cell(0.6, 0.8), cell(0.1, 0.9, diverged=True)]
    assert sorted(order, key=tune.cost) == order


def test_tuning_is_resumed_and_written_down(tmp_path, monkeypatch):
    results = store.Store(tmp_path)
    rates = []

    def train(key, workload, progress):
        rate = runner.methods.parse(key["method"]).options["learning_rate"]
        rates.append(rate)
        assert key["seed"] == runner.TUNING_SEEDS[0]
        loss = abs(math.log10(rate) + 2)
        return {"key": key, "diverged": False, "final": {"validation": {"loss": loss, "accuracy": -loss}}}

    monkeypatch.setattr(runner, "train", train)
    workload = toy()
    choice = tune.tune(workload, results, schedules=("constant", "linear"), num_steps=10)
    assert choice["best"] == "baseline:learning_rate=0.01,schedule=constant"
    assert set(choice["schedules"]) == {"constant", "linear"}
    assert len(rates) == 6 + 6
    assert tune.tune(workload, results, schedules=("constant", "linear"), num_steps=10) == choice
    assert len(rates) == 6 + 6
    key = runner.cell_key(workload, "momo", 1, num_steps=10)
    assert tune.choice(results, key, ["linear", "constant"])["best"].startswith("baseline:learning_rate=0.01")
    assert tune.choice(results, key, ["linear", "warmup_cosine"]) is None  # not all schedules
    assert tune.choice(results, key) == choice
    assert tune.choice(results, runner.cell_key(workload, "momo", 1), ["linear"]) is None
    other = tune.tune(workload, results, schedules=("constant",), num_steps=10, base="lion")
    assert other["best"] == "baseline:base=lion,learning_rate=0.01,schedule=constant"
    assert len(rates) == 6 + 6 + 6
    assert tune.tune(workload, results, schedules=("constant", "linear"), num_steps=10) == choice


def test_three_seeds_decide_in_the_setting_of_the_workload(tmp_path, monkeypatch):
    """The rate and the schedule that are best on the first seed are lucky there."""
    results, seen = store.Store(tmp_path), []

    def train(key, workload, progress):
        options = runner.methods.parse(key["method"]).options
        rate, seed = options["learning_rate"], key["seed"]
        seen.append(seed)
        loss = abs(math.log10(rate) + 2) + 0.1 * (options["schedule"] == "linear")
        lucky = rate == 0.1 and seed == runner.TUNING_SEEDS[0]
        return {
            "key": key,
            "diverged": False,
            "final": {"validation": {"loss": -1.0 if lucky else loss, "accuracy": 0}},
        }

    monkeypatch.setattr(runner, "train", train)
    workload = dataclasses.replace(toy(), metric="loss", higher_is_better=False)
    choice = tune.tune(workload, results)
    assert choice["best"] == "baseline:learning_rate=0.01,schedule=constant"
    assert {entry["seeds"] for entry in choice["schedules"].values()} == {3}
    assert set(choice["schedules"]) == set(runner.methods.SCHEDULES)
    others = [seed for seed in seen if seed != runner.TUNING_SEEDS[0]]
    assert sorted(others) == sorted([*runner.TUNING_SEEDS[1:]] * 2 * 4)
    assert len(seen) - len(others) == 6 + 6 + 3 + 6  # the held schedule's lie about the best linear one
    assert not any(map(runner.is_reported, seen))
    seen.clear()
    assert tune.tune(workload, results) == choice
    assert not seen
