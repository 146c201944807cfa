"""Every question on a small workload: it measures, goes on where it stopped, and has a page."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from opening import sentences_of
from toy import toy

import gen_optax
from benchmarks import __main__ as command_line
from benchmarks import methods, questions, runner, store, tune
from benchmarks import report as pages
from benchmarks.questions import (
    Study,
    _anytime,
    _gains,
    _lengths,
    authors,
    batch_size,
    breakdown,
    defaults,
    overhead,
    paper,
    precision,
    quality,
    robustness,
    scale,
    sensitivity,
    trajectories,
)
from benchmarks.workloads import get


@pytest.fixture
def study(tmp_path):
    return Study(
        results=store.Store(tmp_path),
        load=lambda name: toy(name=name, num_steps=4),
        workloads=("toy",),
        seeds=(1,),
        tiny=True,
    )


@pytest.fixture
def one_rate(monkeypatch):
    """The baseline is tuned over a single rate."""
    monkeypatch.setattr(tune, "GRIDS", {"adamw": range(-4, -3)})
    monkeypatch.setattr(tune, "_LIMITS", (-4, -4))


def page_of(question, study, monkeypatch):
    """What a question reports after it was asked twice, the second time with nothing left to train."""
    question.run(study)
    monkeypatch.setattr(runner, "train", lambda *_: pytest.fail("trained again"))
    question.run(study)
    return question.report(study.results)


@pytest.mark.usefixtures("one_rate")
def test_quality(study, monkeypatch):
    monkeypatch.setattr(methods, "QUALITY", ("momo",))
    text = page_of(quality, study, monkeypatch)
    assert "tuned baseline" in text
    assert "warmup, cosine baseline" in text
    assert "| momo |" in text


@pytest.mark.usefixtures("one_rate")
def test_defaults_are_chosen_on_validation_splits_and_seeds_of_their_own(study, monkeypatch):
    text = page_of(defaults, study, monkeypatch)
    cells = list(study.results.cells())
    assert {cell["key"]["seed"] for cell in cells} == {*runner.TUNING_SEEDS, 101}
    assert not any("test" in cell["final"] for cell in cells)
    assert text.count("| default: `gen") == 2
    assert sentences_of(f"![none](none.png)\n\n{text}")  # there is one variant, the default: nothing to draw
    assert "## Under stress" not in text  # of other cells than these
    assert quality.report(study.results) is None


def test_a_run_is_lost_under_stress(study, monkeypatch):
    monkeypatch.setattr(defaults, "STRESS", "toy")
    monkeypatch.setattr(defaults, "_STRESS_SEEDS", range(101, 104))
    for seed, value in zip(range(101, 104), (0.9, 0.88, 0.3), strict=True):
        key = {"workload": "toy", "method": "gen", "seed": seed, "batch_size": 8}
        final = {"validation": {"accuracy": value}}
        study.results.put({"key": key, "diverged": False, "final": final, "workload": {"metric": "accuracy"}})
    row = "| default: `gen` | 0.88 | 0.693 | 0.3 | 1 of 3 |"
    assert row in defaults._under_stress(study.results, 8)
    assert defaults._under_stress(study.results, 4) is None


def test_every_variant_can_be_built():
    for variants in defaults.VARIANTS.values():
        assert len(set(variants.values())) == len(variants)
        for method in variants.values():
            methods.build(methods.parse(method), toy(), 10)
            assert method == str(methods.parse(method))  # as the cells call it


def test_sensitivity(study, monkeypatch):
    text = page_of(sensitivity, study, monkeypatch)
    assert "## Initial rate\n" in text
    assert "| 1e-08 | toy |" in text
    assert sentences_of(text)


def test_every_value_of_every_factor_can_be_built():
    for values in sensitivity.plan().values():
        assert len(set(values.values())) == len(values)
        for method in values.values():
            methods.build(methods.parse(method), toy(), 10)


@pytest.mark.usefixtures("one_rate")
def test_batch_size(study, monkeypatch):
    monkeypatch.setattr(batch_size, "METHODS", ("momo",))
    text = page_of(batch_size, study, monkeypatch)
    assert "| 8 | 8 | tuned baseline (0." in text
    assert "| 16 | 4 | momo |" in text
    assert sentences_of(text) == [pages.NO_GEN]


def test_batch_size_in_words():
    def cells(loss, rate=0.1):
        return [cell_of(loss, highest_learning_rate=rate)]

    base = batch_size._BASELINE
    a = {
        16: {base: cells(2.0, 0.1), "gen_horizon": cells(2.02, 0.2), "gen": cells(1.0)},
        64: {base: cells(2.0, 0.2), "gen_horizon": cells(2.5, 0.8)},
    }
    b = {16: {base: cells(2.0)}, 64: {base: cells(2.0), "gen_horizon": cells(1.0), "gen": cells(2.3)}}
    assert sentences_of(opening(batch_size._in_words({"a": a, "b": b}))) == [
        "With the steps given, GeN is ahead of the tuned baseline, or at most 1 % behind, at 2 of 3 batch sizes.",
        "Its worst is `a` with 64 examples a step: 25 % behind.",
        "With an open end it keeps up in the same sense at 1 of 2.",
        "On `a`, from 16 to 64 examples, its highest rate changes by a factor of 4 and the tuned rate by 2.",
    ]
    a[64]["gen_horizon"][0]["diverged"] = True
    worst = batch_size._in_words({"a": a})[1]
    assert worst == "Its worst is `a` with 64 examples a step: lost with a seed that failed."


def cell_of(loss, diverged=False, **more):
    final = {split: {"loss": loss} for split in ("test", "validation")}
    return {"diverged": diverged, "final": final, "workload": {"metric": "loss", "higher_is_better": False}, **more}


def opening(sentences):
    return pages.opening("![a picture](picture.png)", sentences)


def test_defaults_in_words(tmp_path, monkeypatch):
    def gains(*losses):
        return {str(index): ([cell_of(loss)], [cell_of(2.0)]) for index, loss in enumerate(losses)}

    kind = "with a horizon"
    compared = {
        "gen_horizon": gains(1.0, 2.0, 4.0),
        "gen_horizon:sigma=1": gains(1.1, 2.2, 2.0),
        "gen_horizon:memory=1": gains(0.9, 1.0, 8.0),
    }
    beside = defaults._beside_the_default(kind, compared)
    assert beside["gen_horizon:sigma=1"] == pytest.approx({"0": -10, "1": -10, "2": 50})
    monkeypatch.setattr(defaults, "lost_under_stress", lambda _, size: {"gen_horizon": (size, 60)})
    words = defaults._in_words(store.Store(tmp_path), {kind: compared}, {kind: beside})
    assert sentences_of(opening(words)) == [
        "With the steps given, the default is ahead of the tuned schedule, or at most 0.1 % behind, on 2 of 3 "
        "workloads.",
        "Of the variants on 3 workloads, by the median `memory=1` is best beside it, 10 % ahead, and `sigma=1` worst, "
        "10 % behind.",
        "Under stress 12 of 120 of its runs are lost.",
    ]
    figures = {}
    monkeypatch.setattr(pages, "_save", lambda figure, path: figures.update({path.name: figure}))
    defaults._draw(store.Store(tmp_path), {kind: beside})
    (axis,) = figures["defaults.png"].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["sigma=1", "memory=1"]
    light, dark, *_ = axis.lines
    assert light.get_xydata().tolist() == [[-10, 0], [-10, 0], [10, 0]]  # 50 is beyond the edge
    assert dark.get_xydata().tolist() == [[-10, 0]]


def test_sensitivity_in_words():
    def losses(**of_methods):
        return {method: [cell_of(loss, diverged=loss > 9)] for method, loss in of_methods.items()}

    plan = sensitivity.plan()
    factors = {factor: list(plan[factor]) for factor in ("memory", "sigma")}
    memory, sigma = (list(plan[factor].values()) for factor in factors)
    workloads = {
        "a": losses(**{memory[0]: 1.0, memory[1]: 1.2, sigma[0]: 2.0, sigma[1]: 2.2}),
        "b": losses(**{memory[0]: 1.0, memory[1]: 3.0, memory[3]: 10.0}),
    }
    assert sentences_of(opening(sensitivity._in_words(factors, workloads))) == [
        'A seed fails in 1 of 7 combinations of a value and a workload: 1 of "memory".',
        'Where none fails, what matters most is "memory": on `a` its worst value ends at 1.2 times the test loss of '
        "its best.",
        'What matters least is "sigma", with a factor of 1.1.',
    ]


def test_steps_for_a_batch_size():
    workload = toy(num_steps=400, batch_size=64)
    assert [batch_size.steps(workload, size) for size in (4, 16, 64, 128, 4096)] == [1600, 1600, 400, 200, 50]


@pytest.mark.usefixtures("one_rate")
def test_quality_of_shorter_and_longer_runs(study, monkeypatch):
    monkeypatch.setattr(methods, "QUALITY", ("gen",))
    for name, value in (("WORKLOADS", ("toy",)), ("METHODS", ("gen",)), ("FACTORS", (0.25, 1, 4))):
        monkeypatch.setattr(_lengths, name, value)
    drawn = {}
    monkeypatch.setattr(_gains, "draw", lambda path, panels: drawn.update(panels))
    curves = {}
    monkeypatch.setattr(_anytime, "draw", lambda path, panels: curves.update(panels))
    text = page_of(quality, study, monkeypatch).split("## In shorter and longer runs")[1].split("## ")[0]
    assert text.startswith("\n\n![The test metric against the steps](quality_anytime.png)\n\nThe open end is one run")
    # A panel for each length, with the better of what was tuned for it as the baseline.
    assert list(drawn) == ["The workload's own steps", "A quarter of the steps", "Four times the steps"]
    key = {"workload": "toy", "batch_size": 16, "num_steps": 16, "precision": "float32"}
    best = tune.choice(study.results, key, _lengths.SCHEDULES)["best"]
    cells = pages.by_method(study.results, "toy", factor=4)
    assert drawn["Four times the steps"]["toy"]["gen"].value == pages.gain(cells["gen"], cells[best])
    # The same cells over the steps, with what was tuned for each length.
    assert list(curves) == ["toy, accuracy ↑"]
    assert {name: sorted(points) for name, points in curves["toy, accuracy ↑"].items()} == {
        name: [1, 4, 16] for name in ("tuned", "gen")
    }
    for name, method in (("tuned", best), ("gen", "gen")):
        seen = cells[method][0]["final"]["test"]["accuracy"]
        assert curves["toy, accuracy ↑"][name][16].value == seen
    assert "| workload | method | test metric | 0.25 x | 1 x | 4 x |" in text
    assert text.count("| toy | tuned, ") == 2
    (gain,) = (line.split(" | ") for line in text.splitlines() if line.startswith("| gen | toy | "))
    assert len(gain) == 5
    (slope,) = (line.split(" | ") for line in text.splitlines() if line.startswith("| gen | ") and "toy" not in line)
    assert slope[3:] == ["1", "3", "0 |"]


@pytest.mark.parametrize(("method", "same"), [("gen", True), ("gen_horizon", False)])
def test_a_shorter_run_with_an_open_end_is_the_beginning_of_a_longer_one(method, same):
    """Which is why a row of the table of lengths is a curve over time; with a horizon it is none."""
    workload = toy()
    losses = [
        runner.train(runner.cell_key(workload, method, seed=1, num_steps=steps), workload)["curves"]["loss"]
        for steps in (10, 20)
    ]
    assert (losses[1][:10] == losses[0]) == same


def test_a_failed_seed_leaves_a_gap_in_the_curve():
    def cell(value, diverged=False):
        return {"diverged": diverged, "final": {"test": {"loss": value}}, "workload": {"metric": "loss"}}

    value, error = _anytime.point([cell(1.0), cell(3.0)])
    assert (value, error) == pytest.approx((2.0, 1.0))
    assert math.isnan(_anytime.point([cell(1.0)]).error)
    assert _anytime.point([cell(1.0), cell(3.0, diverged=True)]) is None


def test_the_trend_with_the_length():
    # Half a decade on either side of the mean; gains of a by 2 and of b by 1: slopes of 2 and 1, residuals of 1/4.
    gains = {"a": {1: 5.0, 10: 7.0}, "b": {1: 0.0, 10: 1.0}, "c": {1: 3.0, 4: -math.inf}}
    found = _lengths.trend(gains)
    assert found == pytest.approx(_lengths.Trend(1.5, 0.5, 2, 4, 1))
    exact = _lengths.trend({"a": {factor: 1 + 3 * math.log10(factor) for factor in _lengths.FACTORS}})
    assert exact[:2] == pytest.approx((3, 0), abs=1e-12)
    assert math.isnan(_lengths.trend({"a": {1: 5.0, 10: 7.0}}).standard_error)
    assert math.isnan(_lengths.trend({}).slope)


def test_the_trend_is_fitted_again_without_the_least_even_workload():
    gains = {"gen": {"a": {1: 0.0, 10: 1.0}, "b": {1: 5.0, 10: -3.0}}, "gen_horizon": {"a": {1: 1.0}}}
    assert _lengths.least_even(gains) is None
    gains["gen_horizon"]["c"] = {1: 2.0, 10: 3.0, 4: -math.inf}
    assert _lengths.least_even(gains) == "b"
    assert _lengths.without(gains, "b") == {"gen": {"a": gains["gen"]["a"]}, "gen_horizon": gains["gen_horizon"]}
    assert list(_lengths.trends(gains)) == [
        "gen",
        "gen_horizon",
        "gen, without `b`",
        "gen_horizon, without `b`",
    ]


def test_breakdown_on_a_parabola(study):
    """Where the loss is a parabola, the prediction is exact, and the page says so."""

    def loss_fn(params, model_state, batch, key):
        return 1 + jnp.sum((params["w1"] - batch["x"].mean()) ** 2), model_state

    study = Study(study.results, lambda name: toy(num_steps=12, loss_fn=loss_fn), ("toy",), (1,), tiny=True)
    breakdown.run(study)
    (row,) = study.results.note("breakdown")
    assert row["steps"] == list(range(12))
    assert breakdown._error(breakdown._part(row, 2)["own"]) < 0.05
    assert sum(row["statuses"].values()) >= 11
    text = breakdown.report(study.results)
    assert "| toy | gen_horizon | early |" in text
    assert "breakdown.png" in text
    own, *_ = sentences_of(text)
    assert own.endswith("the median prediction is off by less than half on 1 of 1 workloads.")
    # What is drawn is the first method: without its rows there is a table and no picture.
    rest = [{**row, "key": {**row["key"], "method": "gen_paper_horizon"}}]
    study.results.set_note("breakdown", lambda _: rest)
    text = breakdown.report(study.results)
    assert "| toy | gen_paper_horizon | early |" in text
    assert "breakdown.png" not in text
    # Rows of a method that the question no longer asks about do not show.
    study.results.set_note("breakdown", lambda _: [{**row, "key": {**row["key"], "method": "gen_horizon:probe=exact"}}])
    assert breakdown.report(study.results) is None


@pytest.mark.usefixtures("one_rate")
def test_robustness(study, monkeypatch):
    text = page_of(robustness, study, monkeypatch)
    assert "| toy | adamw | 16 | mixed | gen_horizon |" in text
    assert "| toy | adamw | 16 | float32 | gen |" in text
    assert sentences_of(text)


def test_robustness_counts_the_seeds_that_train_and_those_that_keep_up(tmp_path):
    results = store.Store(tmp_path)
    key = {"workload": "toy", "batch_size": 16, "num_steps": 4, "precision": "float32"}

    def put(method, seed, first, last, test, diverged=False):
        results.put(
            {
                "key": {**key, "method": method, "seed": seed},
                "diverged": diverged,
                "curves": {"loss": [first, last]},
                "final": {"train_loss": last, "test": {"loss": test, "accuracy": 0.5}},
                "probes": {"probes": 4, "accepted": 3, "mean_log_change": 0.1},
                "workload": {"metric": "accuracy", "higher_is_better": True},
            }
        )

    constant = "baseline:base=lion,learning_rate=0.1,schedule=constant"
    for seed in (1, 2, 3):
        put("gen_horizon:base=lion", seed, 2.0, 0.5, (1.19, 1.21, 0.9)[seed - 1])
        put("gen:base=lion", seed, 2.0, (0.5, 0.5, 1.1)[seed - 1], 1.0, diverged=seed == 2)
    untuned = robustness.report(results)
    assert "| gen_horizon | 1 of 1 | 0 of 0 | 0 of 0 |" in untuned
    for seed in (1, 2, 3):
        put(constant, seed, 2.0, 0.5, (0.9, 1.1, 9.0)[seed - 1], diverged=seed == 3)
    setting = tune.setting_name(key, "lion")
    results.set_note("tuned", lambda _: {"toy": {setting: {"constant": {"method": constant, "cost": [0.0, 0.0]}}}})
    text = robustness.report(results)
    assert "| gen_horizon | 1 of 1 | 0 of 1 | 1 of 1 |" in text
    assert "| gen | 0 of 1 | 0 of 1 | 0 of 1 |" in text
    assert "| the best constant rate | 0 of 1 | 0 of 1 | 0 of 1 |" in text
    assert "| lion | 1.1 | 1 |" in text
    rows = {line.split(" | ")[4]: line for line in text.splitlines() if "| toy | lion |" in line}
    assert "| 1 | 2 of 3 |" in rows["gen_horizon"]
    assert "| 1 of 3 |" in rows["gen"]
    assert "| 1 | 2 of 3 |" in rows["gen"]
    assert "3, 1 diverged" in rows["gen"]
    assert sentences_of(text) == [
        "With the steps given, all seeds train in 1 of 1 combinations of base, batch size and precision.",
        "Their mean test loss is within 1.2 times that of the best constant rate in 1 of 1.",
        "With an open end all seeds train in 0 of 1, and with the best constant rate in 0 of 1.",
    ]
    for seed in (1, 2, 3):
        put(constant, seed, 2.0, 0.5, 0.5)
    behind = "In the median over batch sizes and precisions the ratio is above that with `lion` (2.2)."
    assert behind in sentences_of(robustness.report(results))


def test_precision(study, monkeypatch):
    for name, number in (("ARITHMETICS", 2), ("PROBES", 1)):
        monkeypatch.setattr(precision, name, dict(list(getattr(precision, name).items())[:number]))
    precision.run(study)
    monkeypatch.setattr(precision, "points", lambda _: pytest.fail("measured again"))
    precision.run(study)
    text = precision.report(study.results)
    assert "| float32 weights, bfloat16 compute | retrospective |" in text
    assert "| retrospective | float32 | 1.00 | 1.00 to 1.00 |" in text
    assert sentences_of(text)


def test_precision_in_words_and_drawn(tmp_path, monkeypatch):
    fine, coarse = "bfloat16 weights and compute", "bfloat16 throughout, loss too"
    errors = {"retrospective": (0.002, 0.01), "exact": (0.004, 0.02), "finite_difference": (0.05, None)}
    points = [
        {"arithmetic": name, "probe": probe, "median_error": factor * median, "error_90": most}
        for name, factor in ((fine, 1), (coarse, 2))
        for probe, (median, most) in errors.items()
    ]
    ratios = {"float32": [1.0], precision.NUDGED: [0.1, 9.0], fine: [0.9, 1.1], coarse: [0.5, 1.2]}
    runs = [
        {"arithmetic": name, "probe": "retrospective", "rate_relative_to_float32": seen}
        for name, seen in ratios.items()
    ]
    row = {"points": points, "runs": runs}
    assert sentences_of(opening(precision._in_words(row))) == [
        "In the worst arithmetic, half of the answers of the default's probe are within 0.4 % of those in float32.",
        "They are within 0.8 % for `exact` and within 10.0 % for `finite_difference`.",
        f"Over whole runs with {coarse}, the default finds 0.50 to 1.20 times the learning rate of float32.",
    ]
    figures = {}
    monkeypatch.setattr(pages, "_save", lambda figure, path: figures.update({path.name: figure}))
    precision._draw(store.Store(tmp_path), row)
    (axis,) = figures["precision.png"].axes
    line, dot, *_ = axis.lines
    assert line.get_xdata() == pytest.approx([0.002, 0.01])
    assert dot.get_xdata() == pytest.approx([0.002])
    assert axis.lines[4].get_xdata() == pytest.approx([0.05, 10.0])  # float32 would not have accepted it
    assert [label.get_text().replace("\n", " ") for label in axis.get_yticklabels()] == [fine, coarse]


def test_overhead_counts_memory(study):
    overhead.run(study)
    rows = study.results.note("overhead")
    probes = rows[0]["probes"]
    # A copy of the parameters is what a path costs; one candidate at a time costs nothing.
    assert probes["retrospective"]["memory_ratio"] > 1.05
    assert probes["three points, map"]["memory_ratio"] < probes["three points, vmap"]["memory_ratio"]
    text = overhead.report(study.results)
    assert "1 + kF / (Φ S)" in text
    row = next(row for row in rows if "workload" in row["key"])
    assert row["num_parameters"] == sum(p.size for p in jax.tree.leaves(study.load("toy").init(jax.random.key(0))[0]))
    # The search is paid for once in a run.
    seen, forward = row["probes"]["retrospective"]["ratio"], row["forward_seconds"] / row["base_seconds"]
    assert overhead.with_search(row) == pytest.approx(seen + (23 + 2 * 50 * 15 / 16) * forward / row["num_steps"])
    # Compilation is beside that of the base step, in the same run.
    assert {row["key"]["workload"] for row in rows if "workload" in row["key"]} == {"toy", "nnx_cnn"}
    assert row["base_compile_seconds"] > 0
    assert row["probes"]["retrospective"]["compile_ratio"] > 1
    assert "compilation / base" in text


@pytest.mark.parametrize("every", [1, 2, 16])
def test_each_turn_that_is_timed_has_its_probe(every):
    row = overhead.measure(overhead.perceptron(300), every, turns=2)
    assert {name: seen["probes_per_turn"] for name, seen in row["probes"].items()} == dict.fromkeys(overhead.PROBES, 1)


def test_cost_against_size_is_of_one_phi(tmp_path, monkeypatch):
    def row(size, ratio, every=16, **key):
        probe = {"ratio": ratio, "quartiles": [ratio - 0.01, ratio + 0.02], "memory_ratio": 1 + ratio / 10}
        probe |= {"model": 1.0, "model_with_optimizer": 1.0}
        about = {"num_parameters": size, "num_steps": 100, "base_bytes": 16 * size}
        about |= {"base_seconds": 1.0, "forward_seconds": 0.3}
        return {"key": {"every": every, **key}, "probes": dict.fromkeys(overhead.PROBES, probe), **about}

    rows = [
        row(1000, 1.3, parameters=1000),
        row(100, 1.2, parameters=100),
        row(100, 2.0, every=1, parameters=100),
        row(500, 1.1, workload="toy"),
    ]
    perceptrons, workloads = overhead.by_size(rows)
    assert [row["num_parameters"] for row in perceptrons] == [100, 1000]
    assert [row["key"]["workload"] for row in workloads] == ["toy"]
    figures = {}
    monkeypatch.setattr(pages, "_save", lambda figure, path: figures.update({path.name: figure}))
    results = store.Store(tmp_path)
    results.set_note("overhead", lambda _: rows)
    text = overhead.report(results)
    assert text.startswith("![cost against size](overhead_size.png)")
    assert sentences_of(text) == [
        "With one probe in 16 steps, a step of the suite's workloads takes 1.10 times as long as that of the base "
        "optimizer.",
        "On perceptrons, which do little work with each parameter, it takes 1.20 to 1.30 times as long.",
        "A step needs 1.11 to 1.13 times the memory.",
    ]
    times, memory = figures["overhead_size.png"].axes
    default, *_ = times.containers
    assert default.lines[0].get_xydata() == pytest.approx(np.array([(100, 1.2), (1000, 1.3)]))
    assert default.lines[2][0].get_segments()[0][:, 1] == pytest.approx([1.19, 1.22])
    assert memory.containers[1].lines[0].get_xydata() == pytest.approx(np.array([(500, 1.11)]))
    assert [text.get_text() for text in times.texts] == ["toy"]


@pytest.mark.usefixtures("one_rate")
def test_paper(study, monkeypatch):
    """Training on the first workload and measuring on the other; the loss of the tuned schedule is that of quality."""
    monkeypatch.setattr(paper, "METHODS", {"toy": ("gen_paper:every=1", "gen_horizon", "momo")})
    monkeypatch.setattr(paper, "_TITLES", {"toy": "A toy", "slow": "A slow toy"})
    monkeypatch.setattr(paper, "VIT", "slow")
    study = dataclasses.replace(study, workloads=())
    text = page_of(paper, study, monkeypatch)
    assert text.startswith("![the paper's experiments](paper.png)\n\nOn `toy`, beside")
    assert "the best of GeN is `gen" in text
    assert sentences_of(text)
    trained, measured = text.split("## A toy\n")[1].split("## A slow toy\n")
    rows = {line.split("|")[1].strip().split(" (")[0]: line for line in trained.splitlines() if line[:1] == "|"}
    assert set(rows) >= {"tuned schedule", "tuned constant rate", "gen_paper:every=1", "gen_horizon", "momo"}
    assert "| 0 | 1 |" in rows["tuned schedule"]
    (row,) = study.results.note("paper")
    assert row["key"] == {"workload": "slow", "every": 2}
    seen = row["probes"]["retrospective"]
    assert seen["model"] == pytest.approx(1 + row["forward_seconds"] / row["forward_and_backward_seconds"], rel=1e-4)
    assert f"| 2 | retrospective | {pages.number(seen['ratio'])} |" in measured
    # Without a run of GeN by today's rule there is nothing to compare, and no row of rivals alone.
    study.results.remove(lambda cell: cell["key"]["method"].startswith("gen"))
    assert "A toy" not in paper.report(study.results)


def test_the_picture_of_the_papers_experiments(tmp_path, monkeypatch):
    def cell(value, diverged=False):
        return {"diverged": diverged, "final": {"test": {"accuracy": value}}, "workload": {"metric": "accuracy"}}

    def row(every):
        seen = {"ratio": 1 + 1 / every, "quartiles": [1.0, 3.0], "model": 1 + 2 / every}
        return {"key": {"every": every}, "probes": dict.fromkeys(overhead.PROBES, seen)}

    figures = {}
    monkeypatch.setattr(pages, "_save", lambda figure, path: figures.update({path.name: figure}))
    rows = {"tuned schedule": [cell(0.9), cell(0.8)], "gen": [cell(0.7), cell(0.1, diverged=True)]}
    paper._draw(store.Store(tmp_path), {paper.RESNET: rows}, [row(1), row(4)])
    accuracies, times = figures["paper.png"].axes
    tuned, ours = accuracies.containers
    assert tuned.lines[0].get_xydata() == pytest.approx(np.array([(0.85, 0)]))
    assert tuned.lines[2][0].get_segments()[0][:, 0] == pytest.approx([0.8, 0.9])
    assert (tuned.lines[0].get_marker(), ours.lines[0].get_marker()) == ("o", "x")
    assert times.containers[0].lines[0].get_xydata() == pytest.approx(np.array([(1, 2.0), (4, 1.25)]))
    formula = next(line for line in times.lines if line.get_linestyle() == ":")
    assert formula.get_xydata() == pytest.approx(np.array([(1, 3.0), (4, 1.5)]))


@pytest.mark.parametrize("workload", paper.METHODS)
def test_the_methods_of_the_papers_experiments_can_be_built(workload):
    for method in paper.METHODS[workload]:
        methods.build(methods.parse(method), toy(), 10)
        assert method == str(methods.parse(method))


def test_the_search_for_a_rate_begins_with_as_many_evaluations_as_overhead_says():
    evaluated = []

    def loss(w):
        evaluated.append(w)
        return jnp.sum(w**2)

    w = jnp.ones(3)
    tx = gen_optax.gen(optax.sgd(1.0))
    tx.update(2 * w, tx.init(w), w, value=loss(w), value_fn=loss)
    concrete = [x for x in evaluated[1:] if not isinstance(x, jax.core.Tracer)]  # its type is asked for as well
    assert len(concrete) == overhead._FIRST_RATES


def test_scale_counts_what_a_probe_costs(study):
    scale.run(study)
    text = scale.report(study.results)
    base, probe = study.results.note("scale")
    assert base["collectives"]["all-gather"]["count"] > 0
    gathered = [row["collectives"]["all-gather"]["count"] for row in (base, probe)]
    assert gathered[1] > gathered[0]
    # Two forward passes beside forward, backward and recomputation, which are four times one.
    assert 1.4 < probe["flops"] / base["flops"] < 1.6
    assert "| 2 | retrospective |" in text
    assert sentences_of(text)


def test_scale_in_words():
    def row(devices, probe, memory, gathered, flops):
        about = {"memory_bytes": memory * 2**30, "collectives": {"all-gather": {"bytes": gathered * 2**30}}}
        return {"key": {"devices": devices, "probe": probe}, "flops": flops, **about}

    base = {8: row(8, "base", 4, 10, 100), 64: row(64, "base", 1, 10, 100)}
    rows = [row(8, "retrospective", 5, 18, 150), row(64, "retrospective", 1.25, 18, 150), row(64, "exact", 9, 90, 900)]
    assert sentences_of(opening(scale._in_words(rows, base))) == [
        "The default probe adds 1 GiB to the memory of each of 8 devices, and 0.25 GiB to that of each of 64.",
        "A probe makes each of 64 devices receive 8 GiB.",
        "With one probe in 16 steps, that is 5.0 % more than without GeN, and operations are 3.1 % more.",
    ]
    assert gen_optax.balance().every == scale._EVERY


def test_the_account_of_a_program_counts_loops():
    program = """HloModule m
%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %g = f32[16,4]{1,0} all-gather(%x), dimensions={0}
  %d = f32[16,16]{1,0} dot(%g, %g), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}
ENTRY %main (a: f32[8,4]) -> f32[] {
  %a = f32[8,4]{1,0} parameter(0)
  %w = (s32[], f32[8,4]{1,0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %r = f32[] all-reduce(%s), to_apply=%sum
}
"""
    seen = scale.account(program)
    assert seen["collectives"]["all-gather"] == {"count": 5, "bytes": 5 * 16 * 4 * 4}
    assert seen["collectives"]["all-reduce"] == {"count": 1, "bytes": 4}
    assert seen["flops"] == 5 * 2 * 16 * 16 * 4
    assert scale.account(program, open_turns=3) == seen
    open_ended = program.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    assert scale.account(open_ended, open_turns=3)["flops"] == 3 * 2 * 16 * 16 * 4


def test_authors_trace_agrees_with_theirs(study):
    pytest.importorskip("torch")
    pytest.importorskip("GeN")
    authors.run(study)
    (row,) = study.results.note("authors")
    assert row["ours"] == pytest.approx(row["theirs"], rel=1e-3)
    assert "plain SGD" in authors.report(study.results)


def test_authors_in_words():
    def row(case, *ours):
        return {"key": {"case": case}, "ours": list(ours), "theirs": [1.0] * len(ours)}

    same, other, third = list(authors.CASES)[:3]
    rows = [row(same, 1.0, 1.00002), row(other, 1.0, 0.25), row(third, 1.0, 1.2)]
    assert sentences_of(opening(authors._in_words(rows))) == [
        "On plain SGD, where both packages follow the same rule on the same numbers, their learning rates differ by "
        "at most 2e-05 of themselves.",
        "They stay within 1 % of each other in 1 of 3 cases.",
        f'They differ most in the case "{other}", by a factor of 4.',
    ]


def test_trajectories(study):
    study = dataclasses.replace(study, load=functools.partial(get, tiny=True), workloads=("beale",))
    trajectories.run(study)
    first = study.results.note("trajectories")[0]
    assert first["step"] == list(range(21))
    assert first["loss"][-1] < first["loss"][0]
    text = trajectories.report(study.results)
    assert "| beale | gen_horizon | 20 |" in text
    assert sentences_of(text) == ["Never below it are `gen` on `beale` and `gen_horizon` on `beale`."]
    assert (study.results.root / "trajectories.png").exists()


def test_trajectories_in_words():
    first = {("beale", "gen"): 107, ("beale", "gen_paper"): 65, ("beale", "backtracking"): None}
    first |= {("rosenbrock", "gen"): 784, ("rosenbrock", "gen_paper"): None}
    rows = [{"key": {"workload": w, "method": m}, "first_below_1e-3": step} for (w, m), step in first.items()]
    assert sentences_of(opening(trajectories._in_words(rows))) == [
        "On `beale` `gen_paper` is first below a loss of 1e-3, after 65 steps; `gen` needs 107.",
        "On `rosenbrock` `gen` is first below a loss of 1e-3, after 784 steps.",
        "Never below it are `backtracking` on `beale` and `gen_paper` on `rosenbrock`.",
    ]


@pytest.mark.parametrize("name", questions.NAMES)
def test_every_question_says_what_it_asks_and_has_nothing_to_say_yet(name, tmp_path):
    module = questions.module(name)
    assert module.__doc__.split("\n")[0].endswith("?")
    assert module.report(store.Store(tmp_path)) is None


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "_load", lambda tiny: lambda name: toy(name=name, num_steps=2))
    results = ["--results", str(tmp_path)]
    command_line.main(["run", "--workloads", "toy", "--methods", "momo", "--seeds", "1", *results])
    assert "toy  momo  seed 1  test loss" in capsys.readouterr().out
    with pytest.raises(ValueError, match="Unknown method 'mumu'"):
        command_line.main(["run", "--workloads", "toy", "--methods", "mumu", *results])
    command_line.main(["report", *results])
    assert str(tmp_path / "runs.md") in capsys.readouterr().out
    command_line.main(["list"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*methods.FAMILIES, *questions.NAMES))
