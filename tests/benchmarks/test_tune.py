"""The tuner: where the grid grows, and what it takes for the best."""

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

    def cost_of(exponent):
        assert exponent not in seen
        seen.append(exponent)
        return abs(exponent - best)

    assert tune.search(cost_of, range(-6, -2)) == (best, 0)
    assert set(seen) == tried


def test_the_grid_ends_where_everything_diverges():
    exponent, cost = tune.search(lambda exponent: math.inf, range(-6, 0))
    assert cost == math.inf
    assert exponent >= -20


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
        assert key["seed"] == runner.TUNING_SEED
        loss = abs(math.log10(rate) + 2)
        return {"key": key, "diverged": False, "final": {"validation": {"loss": loss, "accuracy": -loss}}}

    monkeypatch.setattr(runner, "train", train)
    workload = toy()
    choice = tune.tune(workload, results, schedules=("constant", "linear"), num_steps=10)
    assert choice["best"] == "baseline:learning_rate=0.01,schedule=constant"
    assert set(choice["schedules"]) == {"constant", "linear"}
    assert len(rates) == 2 * 6
    assert tune.tune(workload, results, schedules=("constant", "linear"), num_steps=10) == choice
    assert len(rates) == 2 * 6
    setting = tune.setting_name(runner.cell_key(workload, "momo", 1, num_steps=10))
    assert tune.choice(results, "toy", setting, ["linear", "constant"])["best"].startswith(
        "baseline:learning_rate=0.01"
    )
    assert tune.choice(results, "toy", setting) is None  # not all schedules
    assert tune.choice(results, "toy", "another", ["linear"]) is None
    other = tune.tune(workload, results, schedules=("constant",), num_steps=10, base="lion")
    assert other["best"] == "baseline:base=lion,learning_rate=0.01,schedule=constant"
    assert len(rates) == 3 * 6
    assert tune.tune(workload, results, schedules=("constant", "linear"), num_steps=10) == choice
