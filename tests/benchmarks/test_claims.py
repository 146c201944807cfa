"""The numbers of the claims, against results made up for them; what is not measured is not claimed."""

import pytest

from benchmarks import claims, store
from benchmarks.questions import authors, precision


@pytest.fixture
def results(tmp_path):
    return store.Store(tmp_path)


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: getattr(claim, "name", "") or claim.text[:30])
def test_without_results_nothing_is_claimed(claim, results):
    assert claim.command.startswith("python -m benchmarks ")
    if getattr(claim, "numbers", None) is claims._cost_by_count:
        return  # what the code says needs no results
    if isinstance(claim, claims.Sentence):
        assert claim.numbers(results) is None
    else:
        assert claim.content(results) is None


def put(results, workload, method, value, seed=1, **changes):
    own = {"base": "sgd", "batch_size": 8, "num_steps": 100, "metric": "accuracy", "higher_is_better": True}
    key = {"workload": workload, "method": method, "seed": seed, "batch_size": 8, "num_steps": 100}
    results.put(
        {
            "key": {**key, "precision": "float32", **changes},
            "workload": own,
            "diverged": False,
            "highest_learning_rate": 0.025,
            "final": {"test": {"accuracy": value, "loss": 1.0}, "validation": {"accuracy": value}, "train_loss": 1.0},
        }
    )


def test_gains_beside_the_tuned_schedule(results):
    tuned = "baseline:learning_rate=0.1,schedule=linear"
    entries = {
        name: {"method": tuned if name == "linear" else f"baseline:schedule={name}", "cost": [cost, 0.0]}
        for name, cost in {"linear": -0.9, "constant": -0.8, "warmup_cosine": -0.7}.items()
    }
    setting = {"batch 8, 100 steps, float32": entries}
    results.set_note("tuned", lambda _: {name: setting for name in ("ahead", "level", "behind")})
    for workload, (horizon, open_end) in {"ahead": (0.9, 0.9), "level": (0.7995, 0.8), "behind": (0.6, 0.84)}.items():
        put(results, workload, tuned, 0.8)
        put(results, workload, "gen_horizon", horizon)
        put(results, workload, "gen", open_end)
    put(results, "alone", "gen", 0.1)  # with no baseline it says nothing
    assert claims._level(results) == {"workloads": "3", "horizon": "2", "open_end": "3"}
    assert claims._behind(results) == {"list": "`behind` (-25 and 5)"}
    assert claims._rates_behind(results) == {"list": "0.25 on `behind`"}
    assert claims._open_end(results) == {"near": "3", "both": "3", "limit": "3"}
    put(results, "behind", "gen", 0.5)
    assert claims._open_end(results) == {"near": "2", "both": "3", "limit": "3"}
    states = [line.split(" | ")[1].removesuffix(" |") for line in claims._goals(results).splitlines()[2:]]
    assert states[0] == (
        "missed: of 3 workloads it is level on 2, within 1 % on 2 and within 3 % on 2; the worst is `behind` with -25 %"
    )
    assert states[1].startswith("missed: of 3 workloads it is level on 2, within 1 % on 2")
    assert states[1].endswith("the worst is `behind` with -38 %")
    assert states[2] == claims._NOT_MEASURED
    assert states[3] == "missed: within 1 % on 2 of 3 workloads, within 3 % on 2"  # all of them have 100 steps
    assert states[4:7] == [claims._NOT_MEASURED] * 3
    assert states[7] == "open: 8 constants, workloads with all their rows: 0"


def test_a_goal_is_met_where_most_are_level_and_none_is_far_behind():
    def state(*gains):
        named = {str(index): gain for index, gain in enumerate(gains)}
        return claims._beside_goal(named, most=-0.1, all_of_them=-1.0).split(":")[0]

    assert state(1.0, -0.1, 0.0, 5.0, -1.0) == "met"
    assert state(1.0, -0.1, 0.0, -0.2, -1.0) == "missed"
    assert state(1.0, -0.1, 0.0, 5.0, -1.1) == "missed"


def test_the_goals_of_lengths_ranks_and_stress(results, monkeypatch):
    def trend_goal(slopes, factors, others=(0, 0)):
        even = dict(zip((1, 4), others, strict=True))
        gains = {"a": dict(zip(factors, slopes, strict=True)), "b": even, "c": even}
        monkeypatch.setattr(claims._lengths, "gains_of", lambda _: {"gen_horizon": gains, "gen": gains})
        return claims._trend_goal(results)

    assert trend_goal((0.0, -1.0, 1.0), (1, 4, 10)).startswith("met: per cent for ten times the steps")
    assert trend_goal((0.0, 1.0, -0.1), (0.25, 1, 4)).endswith(
        "; 3 workloads from 0.25 times their steps on, 3 of them to 4 times"
    )
    assert trend_goal((0.0, 1.0, -0.1), (0.25, 1, 4)).startswith("open: ")
    assert trend_goal((-60.0, 0.0, 40.0), (0.1, 1, 10)).startswith("missed: per cent for ten times the steps, +")
    # One workload alone does not hide what all others show.
    hidden = trend_goal((500.0, -500.0, 400.0), (0.25, 1, 10), others=(0, 6))
    assert hidden.startswith("missed: ")
    assert "without `a` +10 ± 0 and +10 ± 0" in hidden

    ranks = {"gen_horizon": 2.0, "gen": 3.0, claims.quality.TUNED: 1.0, "untuned SGD, 0.1": 1.0, "prodigy": 2.5}
    monkeypatch.setattr(claims.quality, "groups_of", lambda _: {"a": {}})
    monkeypatch.setattr(claims.quality, "ranked", lambda _: {name: {"a": rank} for name, rank in ranks.items()})
    monkeypatch.setattr(claims.quality, "comparable", lambda groups: groups)
    assert claims._rank_goal(results) == "met on 1 workloads: 2.0 with a horizon, beside 2.5 of `prodigy`"
    ranks["prodigy"] = 1.9
    assert claims._rank_goal(results).startswith("missed on 1")

    lost = {"gen_horizon": (0, 60), "gen": (0, 60)}
    monkeypatch.setattr(claims.defaults, "lost_under_stress", lambda *_: lost)
    assert claims._stress_goal(results) == "met: 0 of 240 runs"
    assert claims._given_rates_goal(results) == claims._NOT_MEASURED
    given = claims.sensitivity.plan()["initial rate"]
    for rate, metric in (("none", 0.8), ("1e-08", 0.84), ("1e+02", 0.6)):
        put(results, "toy", given[rate], metric)
    behind = "workloads: 1; beside no given rate the worst is 25 % behind"
    assert claims._given_rates_goal(results) == f"met: 0 of 2 runs, {behind}"
    results.put({**next(cell for cell in results.cells() if cell["key"]["method"] == given["1e-08"]), "diverged": True})
    assert claims._given_rates_goal(results).startswith("missed: 1 of 2 runs")
    lost["gen"] = (1, 60)
    assert claims._stress_goal(results) == "missed: 2 of 240 runs"


def test_the_ablation_is_of_workloads_with_all_rows(results):
    settings = list(claims.defaults._CONSTANTS)
    for workload, known in {"whole": settings, "part": settings[1:]}.items():
        for setting in known:
            put(results, workload, f"gen_horizon:{setting}", 0.5, seed=101)
    assert claims._ablation(results) == {"list": "`whole`"}
    assert claims._constants_goal(results) == "met: 8 constants, workloads with all their rows: 1"


def test_rows_of_the_ablation_that_are_far_behind(monkeypatch, results):
    medians = {"sigma=1": -1.1, "memory=1": -0.9, "memory=4": 3.0, "sigma=2": -50.0}
    monkeypatch.setattr(claims.defaults, "medians_of_constants", lambda _: medians)
    assert claims._ablated(results) == {"list": "`sigma=1` and `sigma=2`", "limit": "1"}
    monkeypatch.setattr(claims.defaults, "medians_of_constants", lambda _: {"memory=1": -0.9})
    assert claims._ablated(results) == {"list": "none", "limit": "1"}


def test_the_medians_of_the_ablation_are_of_workloads_with_all_rows(monkeypatch, results):
    kind, (one, two) = next(iter(claims.defaults.VARIANTS)), list(claims.defaults._CONSTANTS)[:2]
    gains = {one: {"a": -1.0, "b": 3.0, "part": 90.0}, two: {"a": -4.0, "b": -2.0}}
    beside = {f"gen_horizon:{setting}": of for setting, of in gains.items()}
    monkeypatch.setattr(claims.defaults, "ablated", lambda _: ["a", "b"])
    monkeypatch.setattr(claims.defaults, "_beside_the_default", lambda *asked: beside if asked[0] == kind else {})
    assert claims.defaults.medians_of_constants(results) == {one: 1.0, two: -3.0}


def test_runs_that_are_lost(results):
    for size in (4, 8):
        for method, values in {"gen": (0.9, 0.9, 0.1), "gen_horizon": (0.9, 0.8, 0.9)}.items():
            for seed, value in enumerate(values, 101):
                put(results, "digits_mlp", method, value, seed, batch_size=size)
    lost = {"gen_horizon_4": "0 of 3", "gen_4": "1 of 3", "gen_horizon_8": "0 of 3", "gen_8": "1 of 3"}
    assert claims._stress(results) == lost


def test_what_a_step_costs(results):
    def row(name, size, ratio, copies):
        probe = {"ratio": ratio, "quartiles": [1.0, 1.2], "compile_ratio": 2.04, "memory_ratio": 1 + copies / 5}
        about = {"num_parameters": size, "base_bytes": 20 * size, "base_seconds": 2.0, "forward_seconds": 1.0}
        return {"key": {"workload": name}, "probes": {"retrospective": probe}, "num_steps": 1000, **about}

    rows = [
        row("gpt_moby", 110_000, 1.01, 0.9),
        row("gpt_sotu", 870_000, 0.98, 1.0),
        row("efficientnet_finetune", 3_400_000, 1.09, 0.95),
    ]
    results.set_note("overhead", lambda _: rows[:2])
    assert claims._overhead(results) is None
    results.set_note("overhead", lambda _: rows)
    found = claims._overhead(results)
    assert found["sizes"] == "0.11, 0.87 and 3.4"
    assert found["times"] == "1.01 (1.00 to 1.20), 0.98 (1.00 to 1.20) and 1.09 (1.00 to 1.20)"
    assert found["compiled"] == "2.0, 2.0 and 2.0"
    # 23 + 2 * 50 * 15 / 16 forward passes, half a step each, in 1000 steps.
    assert found["search"] == "1.07, 1.04 and 1.15"
    assert (found["least"], found["most"]) == ("0.9", "1.0")


def test_how_far_the_authors_package_is(results):
    assert claims._authors(results) is None
    case = next(iter(authors.CASES))
    row = {"key": {"case": case}, "ours": [1.0, 2.0, 3.0], "theirs": [1.0, 2.0, 3.00037]}
    results.set_note("authors", lambda _: [row])
    assert claims._authors(results) == {"difference": "0.00012"}


def test_what_probes_see_in_low_precision(results):
    def point(arithmetic, probe, median, error, accepted=10):
        about = {"arithmetic": arithmetic, "probe": probe, "points": 10, "status": {"ACCEPTED": accepted}}
        return {**about, "median_error": median, "error_90": error}

    fine, coarse = "bfloat16 weights and compute", "bfloat16 throughout, loss too"
    points = [
        point(fine, "retrospective", 0.003, 0.1),
        point(coarse, "retrospective", 0.008, 0.1),
        point(fine, "exact", 0.001, 0.02),
        point(coarse, "exact", 0.001, 0.05),
        point(fine, "finite_difference", 0.06, 0.1),
        point(coarse, "finite_difference", 0.12, 1.0, accepted=7),
    ]
    rates = {(precision.NUDGED, "exact"): [1.1, 1.1, 9.0], (precision.NUDGED, "retrospective"): [0.9]}
    rates |= {(precision.NUDGED, "finite_difference"): [1.0], (coarse, "retrospective"): [0.2, 1.4]}
    rates["float32", "retrospective"] = [1.0]
    runs = [
        {"arithmetic": a, "probe": p, "rate_relative_to_float32": seen, "last_losses": [max(seen), 0.0]}
        for (a, p), seen in rates.items()
    ]
    results.set_note("precision", lambda _: [{"key": {}, "points": points, "runs": runs}])
    assert claims._precision_at_points(results) == {
        "path": "0.3 %",
        "path_coarse": "0.8 %",
        "exact": "5 %",
        "single": "6 %",
        "abstained": "30 %",
        "single_coarse": "12 %",
    }
    assert claims._precision_over_runs(results) == {
        "least": "0.90",
        "most": "1.10",
        "single_least": "0.20",
        "single_most": "1.40",
        "loss": "0.700",
        "fine_loss": "0.500",
    }


def test_what_a_probe_costs_on_a_pod(results):
    def row(devices, probe, factor):
        about = {"arguments_bytes": factor * 2**30, "memory_bytes": factor * 2**31}
        return {"key": {"devices": devices, "probe": probe}, **about, "collectives": {"all": {"bytes": factor * 2**32}}}

    results.set_note("scale", lambda _: [row(8, "base", 1), row(8, "retrospective", 1.5), row(16, "base", 1)])
    assert claims._on_pods(results).splitlines()[2:] == ["| 8 | 1 GiB | 1.5 GiB | 1.50 times | 4 GiB | 2 GiB |"]
