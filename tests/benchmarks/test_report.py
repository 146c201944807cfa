"""Ranks, profiles and tables against examples worked out by hand, and the pages as files."""

import math

import pytest

from benchmarks import methods, report, rule, store, tune
from benchmarks.questions import quality

INF = math.inf


def test_ranks():
    scores = {
        "a": {"x": 0.1, "y": 3.0},
        "b": {"x": 0.2, "y": 3.0, "z": 1.0},
        "c": {"x": INF, "y": 5.0},
        "d": {"x": INF, "y": 1.0},
    }
    assert report.ranks(scores) == {
        "a": {"x": 1, "y": 2.5},
        "b": {"x": 2, "y": 2.5, "z": 1},
        "c": {"x": 3.5, "y": 4},
        "d": {"x": 3.5, "y": 1},
    }


def test_performance_profile():
    costs = {
        "a": {"x": 1.0, "y": 4.0, "z": 2.0, "nobody": INF},
        "b": {"x": 2.0, "y": 2.0, "z": INF, "nobody": INF},
        "c": {"x": 1.5},
    }
    # Ratios to the least: a 1, 2, 1; b 2, 1, none; c 1.5, none, none.
    profile = report.performance_profile(costs, [1.0, 1.5, 2.0])
    assert profile["a"] == pytest.approx([2 / 3, 2 / 3, 1])
    assert profile["b"] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert profile["c"] == pytest.approx([0, 1 / 3, 1 / 3])
    assert report.performance_profile({"a": {"x": INF}}, [1.0]) == {}


def test_numbers_for_readers():
    assert [report.number(x) for x in (0.12345, 1234.5, 12, 1_000_000, None, math.nan, INF)] == [
        "0.123",
        "1,234",
        "12",
        "1,000,000",
        "-",
        "-",
        "∞",
    ]
    assert report.mean_and_spread([1.0, 3.0]) == "2 ± 1.4"
    assert report.mean_and_spread([0.1] * 3) == "0.1 ± 0"
    assert report.mean_and_spread([1.0, None]) == "1"
    assert report.mean_and_spread([]) == "-"
    assert report.table(["a|b"], [[0.5]]).splitlines() == ["| a\\|b |", "| --- |", "| 0.5 |"]


def cell(method, seed, loss=1.0, **changes):
    return {
        "key": {
            "workload": "toy",
            "method": method,
            "seed": seed,
            "batch_size": 16,
            "num_steps": 40,
            "precision": "float32",
        },
        "final": {
            "validation": {"loss": loss, "accuracy": 0.5},
            "test": {"loss": loss, "accuracy": 1 - loss / 10},
            "train_loss": loss,
        },
        "diverged": False,
        "steps": 40,
        "seconds_per_step": 0.01,
        "curves": {"step": [10, 20, 30, 40], "loss": [4.0, 3.0, 2.0, loss], "learning_rate": [0.1] * 4},
        "workload": {
            "base": "adamw",
            "batch_size": 16,
            "num_steps": 40,
            "metric": "accuracy",
            "higher_is_better": True,
        },
        "versions": {"jax": "0"},
        "machine": {"cores": 2},
        "rule": rule.fingerprint(),
        **changes,
    }


@pytest.fixture
def results(tmp_path):
    results = store.Store(tmp_path)
    baseline = "baseline:learning_rate=0.01,schedule=linear"
    results.put(cell(baseline, 0, 0.1))
    for seed in (1, 2):
        results.put(cell(baseline, seed, 2.0 * seed))
        results.put(cell("gen", seed, 2.0))
    results.put(cell("prodigy", 1))
    results.put(cell("prodigy", 2, diverged=True))
    failed = cell("zoom", 1, diverged=True, error="MemoryError: full")
    results.put({name: value for name, value in failed.items() if name not in ("final", "curves")})
    costs = {"linear": [-0.9, 0.1], "constant": [-0.8, 0.2], "warmup_cosine": [-0.7, 0.3]}
    entries = {
        name: {"method": baseline if name == "linear" else f"baseline:schedule={name}", "cost": cost}
        for name, cost in costs.items()
    }
    results.set_note("tuned", lambda _: {"toy": {tune.setting_name(cell("gen", 1)["key"]): entries}})
    return results


def test_steps_to_a_loss():
    run = cell("gen", 1, 1.5)
    assert quality.steps_to(run, 3.0) == 20
    assert quality.steps_to(run, 1.0) == INF
    run["curves"]["loss"][1] = None
    assert quality.steps_to(run, 3.0) == 30


def test_quality_keeps_every_row_and_leaves_the_tuning_seed_out(results):
    text = quality.report(results)
    rows = {line.split("|")[1].strip(): line for line in text.split("## toy")[1].splitlines() if line.startswith("|")}
    tuned = rows["tuned baseline (learning_rate=0.01,schedule=linear)"]
    assert "| 3 ± 1.4 |" in tuned  # seeds 1 and 2, not 0
    assert "a training loss of 3" in text
    assert "| 2 ± 0 | 2 | 20 ± 0 | 0.2 ± 0 | 2 of 2 |" in rows["gen"]
    assert "2, 1 diverged" in rows["prodigy"]
    assert "1, 1 MemoryError" in rows["zoom"]


def test_a_failure_ranks_last(results):
    ranking = quality.report(results).split("## Ranks")[1].split("## ")[0]
    order = [line.split("|")[1].strip() for line in ranking.splitlines() if line.startswith("|")][2:]
    assert order == ["gen", "tuned baseline", "prodigy", "zoom"]


def test_gains_beside_the_tuned_baseline(results):
    # Accuracies of 1 - loss / 10: 0.7 for the baseline, 0.8 for gen; a seed of prodigy diverged, one of zoom failed.
    text = quality.report(results).split("## Beside")[1].split("## ")[0]
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.splitlines() if line[:1] == "|"}
    assert rows["gen"] == f"{100 / 7:.3g}"
    assert rows["tuned baseline"] == "0"
    assert rows["prodigy"] == rows["zoom"] == "-∞"


def test_the_summary(results):
    text = quality.report(results).split("## In short")[1].split("## ")[0]
    assert "| toy, accuracy ↑ | 0.7 ± 0.14 | - | - | 0.8 ± 0 | - | - |" in text


def test_the_summary_counts_failures(results):
    for seed, diverged in ((1, True), (2, False)):
        results.put(cell("gen_horizon", seed, diverged=diverged))
    assert "| 0.7 ± 0.14 | 0.9 (1 of 2 failed) |" in quality.summary(results, quality.groups_of(results))


def test_the_summary_is_of_what_gen_was_trained_on(results):
    results.put(cell("momo", 1) | {"key": cell("momo", 1)["key"] | {"workload": "other"}})
    text = quality.summary(results, quality.groups_of(results))
    assert "| other" not in text
    assert text.endswith(f"Rule {rule.fingerprint()}.\n\nNot trained by today's rule yet, and left out: `other`.")


def test_pages_leave_out_what_is_of_another_rule(results, monkeypatch):
    monkeypatch.setattr(rule, "fingerprint", lambda *_: "0ther0th")
    (results.root / "old.png").write_bytes(b"")
    text = {path.name: path.read_text() for path in report.report(results)}
    assert "2 results of other rules than today's are left out of this page." in text["quality.md"]
    assert "| gen |" not in text["quality.md"]
    assert "| gen |" not in text["runs.md"]
    assert "| tuned baseline" in text["quality.md"]
    results.remove(lambda cell: cell["key"]["method"] != "gen")
    results.set_note("scale", lambda _: [{"key": {"devices": 8}}])
    text = {path.name: path.read_text() for path in report.report(results)}
    assert "1 result of another rule than today's is left out of this page." not in text["quality.md"]
    assert "There is no result by today's rule yet." in text["scale.md"]
    assert not (results.root / "old.png").exists()


def test_pages_and_pictures(results):
    paths = {path.name: path.read_text() for path in report.report(results)}
    assert set(paths) == {"quality.md", "runs.md", "README.md"}
    assert paths["quality.md"].startswith("# Quality: how well does each method train")
    assert (results.root / "quality_profiles.png").stat().st_size > 5_000
    assert "[Quality: " in paths["README.md"]
    assert "jax 0" in paths["README.md"]
    assert "1, 1 MemoryError" in paths["runs.md"]


def test_nothing_to_report(tmp_path):
    assert report.report(store.Store(tmp_path)) == []


def test_pictures_can_be_told_apart():
    styles = [tuple(report.style(i).items()) for i in range(len(methods.QUALITY) + 2)]
    assert len(set(styles)) == len(styles)
