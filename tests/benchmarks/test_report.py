"""Ranks, profiles and tables against examples worked out by hand, and the pages as files."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from opening import sentences_of

from benchmarks import methods, questions, report, rule, store, tune
from benchmarks.questions import _anytime, _gains, quality

INF = math.inf


def test_a_method_with_few_workloads_does_not_take_the_others_from_the_ranks():
    cells, function = ([{"workload": {"metric": metric}}] for metric in ("loss", "distance"))
    groups = {name: {"gen": cells, "momo": cells} for name in ("a", "b", "c")}
    assert quality.comparable({**groups, "c": groups["c"] | {"lqa": cells}}) == groups
    assert quality.comparable({**groups, "c": {"gen": cells}}) == {name: groups[name] for name in ("a", "b")}
    assert quality.comparable({**groups, "beale": {"gen": function, "momo": function, "lqa": function}}) == groups


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
    rows = {line.split("|")[1].strip(): line for line in _section(text, "toy").splitlines() if line.startswith("|")}
    tuned = rows["tuned baseline (learning_rate=0.01,schedule=linear)"]
    assert "| 3 ± 1.4 |" in tuned  # seeds 1 and 2, not 0
    assert "a training loss of 4" in text  # the worse of its two seeds
    assert rows["gen"].endswith("| 2 ± 0 | 2 | 10 ± 0 | 2 of 2 |")
    assert "2, 1 diverged" in rows["prodigy"]
    assert "1, 1 MemoryError" in rows["zoom"]


def test_a_failure_ranks_last(results):
    ranking = quality.report(results).split("## Ranks")[1].split("## ")[0]
    order = [line.split("|")[1].strip() for line in ranking.splitlines() if line.startswith("|")][2:]
    assert order == ["gen", "tuned baseline", "prodigy", "zoom"]


def test_gains_beside_the_tuned_baseline(results):
    # Accuracies of 1 - loss / 10: 0.7 for the baseline, 0.8 for gen; a seed of prodigy diverged, one of zoom failed.
    rows = _worst_in(_section(quality.report(results), "Beside the tuned baseline"))
    assert rows["gen"] == f"{100 / 7:.3g}"
    assert rows["tuned baseline"] == "0"


def test_peers_that_are_far_behind_nearly_everywhere_go_to_a_supplement(results):
    text = quality.report(results)
    assert _worst_in(_section(text, "Supplement")) == {"": "worst", "---": "---", "prodigy": "-∞", "zoom": "-∞"}
    assert not {"prodigy", "zoom"} & _worst_in(_section(text, "Beside the tuned baseline")).keys()
    assert "worse than the tuned baseline by more than 5 % on more than 70 % of their workloads." in text
    assert "[supplement](#supplement)" in _section(text, "Beside the tuned baseline")
    assert text.index("## Supplement") > text.index("## toy")


def test_far_behind_on_seven_of_ten_is_not_nearly_everywhere():
    def of(*gains):
        beside = [cell("gen", 1, 5.0)]  # an accuracy of 0.5
        return {str(i): ([cell("gen", 1, 5.0 - gain / 20)], beside) for i, gain in enumerate(gains)}

    compared = {
        "momo": of(-5.1, -6, -99, -8, -9, -10, -11, 1, 2, 3),
        "cocob": of(-5.1, -6, -99, 3),
        "zoom": of(-5.1, -6, -99, -5.2),
        "dog": of(-5.0, -6, -99, -50, -50),
        "dowg": of(-4.9, -6, -99, -50),
        "gen": of(-90),
        quality.TUNED: of(-90),
        "untuned AdamW, 1e-3": of(-90),
    }
    assert quality.far_behind(compared) == ["cocob", "zoom", "dog", "dowg"]


def _section(text, title):
    """What stands under a heading."""
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def _worst_in(section):
    return {line.split("|")[1].strip(): line.split("|")[2].strip() for line in section.splitlines() if line[:1] == "|"}


def test_a_gain_beside_a_baseline_that_failed():
    alive, lost = [cell("gen", 1)], [cell("gen", 1, diverged=True)]
    assert report.gain(alive, lost) == INF
    assert report.gain(lost, alive) == -INF
    assert report.gain(lost, lost) == 0


def test_losses_below_zero_have_no_part_in_the_profile(results):
    """Nor may they tie with others at some least loss."""
    profiles = quality.report(results).split("## Performance profiles")[1].split("## ")[0]
    assert "least final test loss" in profiles
    results.put(cell("gen", 1, -2.0))
    results.put(cell("gen", 2, -2.0))
    profiles = quality.report(results).split("## Performance profiles")[1].split("## ")[0]
    assert "least final test loss" not in profiles
    assert "least steps to" in profiles


def test_a_baseline_whose_seeds_lie_far_apart_is_named(results):
    """Its accuracies are 0.8 and 0.6."""
    said = "On `toy` the tuned baseline's own seeds have a standard deviation of more than 10 % of their mean"
    assert said in quality.report(results)
    results.put(cell("baseline:learning_rate=0.01,schedule=linear", 2, 2.0))
    assert said not in quality.report(results)


def test_the_error_of_a_gain(results):
    # Accuracies 0.8 and 0.6 beside 0.9 and 0.7: means of 0.7 and 0.8, both with a standard error of 0.1.
    theirs = [cell("momo", 1, 2.0), cell("momo", 2, 4.0)]
    ours = [cell("gen", 1, 1.0), cell("gen", 2, 3.0)]
    assert report.gain(ours, theirs) == pytest.approx(100 / 7)
    assert report.gain_error(ours, theirs) == pytest.approx(100 / 0.7 * math.hypot(0.1, 0.1 * 0.8 / 0.7))
    assert report.gain_error([cell("gen", 1, 1.0), cell("gen", 2, 1.0)], theirs) == pytest.approx(
        100 * 0.9 * 0.1 / 0.7**2
    )
    assert math.isnan(report.gain_error(ours[:1], theirs))
    assert math.isnan(report.gain_error(ours, [theirs[0], cell("momo", 2, diverged=True)]))


def test_the_page_opens_with_a_picture_and_how_to_read_it(results, monkeypatch):
    drawn = {}
    monkeypatch.setattr(_gains, "draw", lambda path, panels: drawn.update(panels))
    for seed in (1, 2):
        results.put(cell("gen_horizon", seed, 3.5 + seed / 10))
        results.put(cell("prodigy:schedule=cosine", seed, 4.0))
        results.put(cell("momo", seed, 4.0))  # has no place in the picture
    opening = quality.report(results).split("## ")[0]
    assert opening.startswith("![The gain on each workload beside the tuned baseline](quality_gains.png)\n\n")
    assert sentences_of(opening) == [
        "With the steps given, GeN is ahead of the tuned baseline, or at most 0.1 % behind, on 0 of 1 workloads.",
        "With an open end it keeps up in the same sense on 1.",
        "It loses on `toy`.",
    ]
    assert opening.strip().endswith(f"Rule {rule.fingerprint()}.")
    (panel,) = drawn.values()
    assert set(panel["toy"]) == {"gen", "gen_horizon", "prodigy:schedule=cosine"}
    # 0.7 for the baseline with a standard error of 0.1; 0.635 with one of 0.005; 0.8.
    error = 100 / 0.7 * math.hypot(0.005, 0.1 * 0.635 / 0.7)
    assert panel["toy"]["gen_horizon"] == pytest.approx((-100 * 0.065 / 0.7, error), rel=1e-6)
    assert panel["toy"]["gen"].value == pytest.approx(100 / 7)


def test_where_it_loses_most():
    def rows(loss):
        return {quality.TUNED: [cell("baseline", 1, 2.0)], "gen": [cell("gen", 1, 2.0)], "gen_horizon": [loss]}

    def sentence(*losses):
        groups = {f"w{index}": rows(cell("gen_horizon", 1, loss)) for index, loss in enumerate(losses)}
        return quality._read_off(groups)[2:]

    assert sentence(2.0, 1.0) == []
    assert sentence(2.0, 4.0, 3.0) == ["It loses on `w1` and `w2`."]
    assert sentence(3.0, 4.0, 5.0) == ["It loses on `w2`, `w1` and `w0`."]
    assert sentence(3.0, 4.0, 2.0, 2.5, 6.0) == ["It loses on 4, most on `w4`, `w1` and `w0`."]


@pytest.mark.parametrize("name", questions.NAMES)
def test_the_page_of_a_question_opens_with_a_picture_and_plain_sentences(name):
    """The pages as they are; `check` compares them with what `report` would write."""
    text = (store.RESULTS / f"{name}.md").read_text()
    title, rest = text.split("\n\n", 1)
    assert title.startswith("# ")
    assert f"`python -m benchmarks question {name}`" in rest.split("\n---\n")[-1]
    if not rest.startswith(("There is no result by today's rule yet.", report.NO_GEN)):
        sentences_of(rest)


def test_without_gen_there_is_no_picture_of_gains(results):
    results.remove(lambda cell: cell["key"]["method"] == "gen")
    assert quality.report(results).startswith(f"{report.NO_GEN}\n\n## In short")
    assert not (results.root / "quality_gains.png").exists()


def test_a_file_keeps_the_colour_of_a_line_of_which_little_is_seen(tmp_path):
    with report.picture(tmp_path / "lines.png") as axes:
        axes[0, 0].imshow(np.linspace(0, 1, 400)[None], cmap="YlGn", aspect="auto")
        axes[0, 0].plot([0, 20], [0, 0], **report.style(0))
    pixels = 255 * plt.imread(tmp_path / "lines.png")[..., :3]
    wanted = [int(report.COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)]
    assert np.abs(pixels - wanted).max(axis=-1).min() <= 2


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, by the names of their files, which are not written."""
    figures = {}
    monkeypatch.setattr(report, "_save", lambda figure, path: figures.update({path.name: figure}))
    return figures


def test_the_picture_of_gains(tmp_path, figures):
    def gain(value, error=1.0):
        return _gains.Gain(value, error)

    own = {
        "worst": {"gen_horizon": gain(-419.0), "gen": gain(-INF, math.nan), "untuned AdamW, 1e-3": gain(-40.0)},
        "best": {"gen_horizon": gain(5.0, 2.0), "gen": gain(4.0, math.nan), "untuned AdamW, 1e-3": gain(51.6)},
    }
    shorter = {"new": {"gen": gain(9.0)}, "worst": {"gen": gain(3.0)}, "best": {"gen": gain(1.0)}}
    _gains.draw(tmp_path / "gains.png", {"own": own, "shorter": shorter})
    figure = figures["gains.png"]
    above, below = figure.axes
    # The order of the first panel, from the top, in all.
    assert [label.get_text() for label in above.get_yticklabels()] == ["best", "worst"]
    assert [label.get_text() for label in below.get_yticklabels()] == ["best", "worst", "new"]
    assert above.yaxis.get_inverted()
    # What is off has its number, and nothing is drawn beyond the edge.
    assert {text.get_text() for text in above.texts} == {"← -419", "← failed", "← -40", "+52 →"}
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in above.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert sorted(abs(text.xyann[0]) for text in above.texts)[:3] == [7, 7, 7], "only where there is a neighbour"
    marks = {line.get_marker(): [] for line in above.lines}
    for line in above.lines:
        marks[line.get_marker()] += [float(x) for x in line.get_xdata()]
    assert (marks["o"], marks["s"], marks["x"]) == ([5, -30], [4, -30], [30, -30])
    bars = [[float(x) for x in line.get_xdata()] for line in above.lines if line.get_linewidth() == 1.8]
    assert bars == [[3, 7]]
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "GeN, steps given",
        "GeN, open end",
        "AdamW at 1e-3, untuned",
    ]
    # A phone shows 624 dots at half their size: letters of 10 points are 9 pixels high there.
    assert figure.get_size_inches()[0] == pytest.approx(5.2)
    assert min(label.get_fontsize() for label in (*above.get_yticklabels(), *below.get_xticklabels())) >= 10


def test_the_picture_of_stopping_at_any_time(tmp_path, figures):
    point = _anytime.Point
    panels = {
        "falls far, error ↓": {
            "gen": {250: point(1.0, 0.1), 1000: point(0.01, 0.001)},
            "tuned": {1000: point(0.02, math.nan)},
        },
        "falls little, loss ↓": {"gen_horizon": {500: point(1.0, 0.1), 1500: point(0.9, 0.1)}},
        "one more, loss ↓": {"gen": {500: point(-1.0, 0.1)}},
    }
    _anytime.draw(tmp_path / "anytime.png", panels)
    far, little, more = figures["anytime.png"].axes
    assert [axis.get_yscale() for axis in (far, little, more)] == ["log", "linear", "linear"]
    assert all(axis.get_xscale() == "log" for axis in (far, little, more))
    assert [label.get_text() for label in far.get_xticklabels()] == ["250", "1k"]
    assert little.get_title(loc="left") == "falls little, loss ↓"
    (bars,) = (bars for bars in far.containers if bars.get_label() == _anytime.STYLES["gen"]["label"])
    assert np.allclose(bars.lines[0].get_xydata(), [(250, 1.0), (1000, 0.01)])
    assert np.allclose(bars.lines[2][0].get_segments(), [[(250, 0.9), (250, 1.1)], [(1000, 0.009), (1000, 0.011)]])
    (legend,) = figures["anytime.png"].legends
    assert {text.get_text() for text in legend.get_texts()} == {s["label"] for s in _anytime.STYLES.values()}


def test_every_method_has_a_lane_of_its_own(tmp_path, figures):
    rows = {method: _gains.Gain(-50.0, math.nan) for method in _gains.METHODS}
    _gains.draw(tmp_path / "gains.png", {"own": {f"toy {i}": rows for i in range(13)}})
    axis = figures["gains.png"].axes[0]
    numbers = sorted(text.get_window_extent().get_points()[:, 1].tolist() for text in axis.texts)
    assert len(numbers) == 4 * 13
    gaps = [above[0] - below[0] for below, above in itertools.pairwise(numbers)]
    assert min(gaps) > 0.7 * 9 * axis.figure.dpi / 72  # as high as a digit of 9 points


def test_profiles_draw_few_methods_and_table_all(results, figures):
    losses = {"gen_horizon": 2.5, "momo": 9.0, "dog": 2.2, "cocob": 8.0, "dowg": 7.0}
    losses |= {name: 6.0 for name in quality._IN_PROFILES if ":" in name}
    losses[methods.UNTUNED["untuned AdamW, 1e-3"]] = 5.0
    for name, loss in losses.items():
        results.put(cell(name, 1, loss))
    text = quality.report(results).split("## Performance profiles")[1].split("## ")[0]
    for axis in figures["quality_profiles.png"].axes:
        assert len(axis.lines) == 7
        assert {line.get_label() for line in axis.lines} == {
            "GeN, steps given",
            "GeN, open end",
            "tuned baseline",
            "AdamW at 1e-3, untuned",
            "Prodigy with cosine",
            "schedule-free AdamW",
            "dog",
        }
        assert len({line.get_color() for line in axis.lines}) == 7
    for name in ("momo", "cocob", "dowg", "zoom", "prodigy"):
        assert text.count(f"| {name} |") == 2


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
    assert (results.root / "quality_gains.png").stat().st_size > 3_000
    assert "[Quality: " in paths["README.md"]
    assert "jax 0" in paths["README.md"]
    assert "1, 1 MemoryError" in paths["runs.md"]


def test_every_run_has_its_entries_under_their_headings(results):
    results.put(cell("gen", 101, 2.0))
    text = {path.name: path.read_text() for path in report.report(results)}["runs.md"]
    header, _, *lines = (line.strip("| ").split(" | ") for line in text.splitlines() if line[:1] == "|")
    runs = [dict(zip(header, line, strict=True)) for line in lines]
    about = {"workload": "toy", "method": "gen", "batch size": "16", "steps": "40", "precision": "float32"}
    reported, chosen_on = (run for run in runs if run["method"] == "gen")
    if not reported["test"]:
        reported, chosen_on = chosen_on, reported
    of_two = {"seeds": "2", "metric": "accuracy", "validation": "0.5 ± 0", "test": "0.8 ± 0"}
    assert {**about, **of_two}.items() <= reported.items()
    assert {**about, "seeds": "1", "test": ""}.items() <= chosen_on.items()


def test_nothing_to_report(tmp_path):
    assert report.report(store.Store(tmp_path)) == []


def test_pictures_can_be_told_apart():
    styles = [tuple(report.style(i).items()) for i in range(len(methods.QUALITY) + 2)]
    assert len(set(styles)) == len(styles)
