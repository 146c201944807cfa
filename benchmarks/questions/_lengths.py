"""The part of `quality` about the length of runs: does GeN keep up, with a baseline that is tuned again at each length?

A rate that is found in the beginning may be too high later on, when noise is most of what is left: a few hundred steps
do not show it. The baseline is the base optimizer at a constant rate and with a linear decay, its rate tuned for each.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from benchmarks import report as pages
from benchmarks import store, tune
from benchmarks.questions import Study, _anytime

WORKLOADS = (
    "digits_mlp",
    "digits_autoencoder",
    "digits_policy",
    "logreg_minibatch",
    "gpt_moby",
    "gru_moby",
    "contrastive_digits",
    "word2vec_moby",
    "flow_letter",
    "variance_prices",
    "diffusion_digits",
    "pinn_burgers",
)
FACTORS = (0.25, 1, 4, 10)  # times the workload's own number of steps
METHODS = ("gen_horizon", "gen")
SCHEDULES = ("constant", "linear")


def run(study: Study) -> None:
    """Tunes and trains at every length, on those of the study's workloads that are studied at several."""
    names = [name for name in study.workloads or WORKLOADS if name in WORKLOADS]
    for workload in map(study.load, names):
        for factor in FACTORS:
            num_steps = pages.steps_at(workload.num_steps, factor)
            choice = tune.tune(workload, study.results, schedules=SCHEDULES, num_steps=num_steps)
            tuned = [choice["schedules"][schedule]["method"] for schedule in SCHEDULES]
            study.train(workload, [*METHODS, *tuned], num_steps=num_steps)


Gains = Mapping[str, Mapping[str, Mapping[float, float]]]  # of each method, by workload and factor


def gains_of(results: store.Store) -> dict[str, dict[str, dict[float, float]]]:
    """The gain of each method at each length, `{method: {workload: {factor: gain}}}`, with more than one length."""
    return _gains_of(_at_all_lengths(results))


def _gains_of(at_all_lengths):
    gains: dict[str, dict[str, dict[float, float]]] = {method: {} for method in METHODS}
    for workload, lengths in at_all_lengths.items():
        for factor, (rows, rivals) in lengths.items():
            for method in METHODS:
                if method in rows and (gain := pages.gain(rows[method], rows.get(rivals[method]))) is not None:
                    gains[method].setdefault(workload, {})[factor] = gain
    return gains


def section(results: store.Store) -> str | None:
    """The trend of the gain with the length, gains and test metrics, of workloads with more than one length."""
    at_all_lengths = _at_all_lengths(results)
    gains = _gains_of(at_all_lengths)
    metrics: list[list[str]] = []
    entries = []
    for workload, lengths in at_all_lengths.items():
        names = dict.fromkeys(name for rows, _ in lengths.values() for name in rows)
        for name in names:
            cells = {factor: rows[name] for factor, (rows, _) in lengths.items() if name in rows}
            metrics.append([workload, name, *_test_metrics(cells)])
            entries += [cell for group in cells.values() for cell in group]
    if not metrics:
        return None
    drawn = _curves(at_all_lengths)
    lengths_header = [f"{factor:g} x" for factor in FACTORS]
    by_length = [
        [method, workload, *(entries.get(factor) for factor in FACTORS)]
        for method, of_workloads in gains.items()
        for workload, entries in of_workloads.items()
    ]
    return "\n\n".join(
        [
            *([f"![The test metric against the steps]({_draw(results, drawn)})", _DRAWN] if drawn else []),
            "Runs have a quarter to ten times the workload's own steps. `gen_horizon` stands beside the better of a "
            "constant rate and a linear decay, `gen` beside the constant rate; all are tuned again at each length. The "
            "slope says what ten times the steps add to the gain, in per cent. It is a fit by least squares against "
            "log10 of the length, with an intercept for every workload. It is fitted again without the workload whose "
            "gains lie furthest apart.",
            pages.table_of(results, entries, _TREND, [[name, *fit] for name, fit in trends(gains).items()]),
            "Per cent by which the mean metric is better (+) or worse (-); -∞ where a seed diverged or failed.",
            pages.table_of(results, entries, ["", "workload", *lengths_header], by_length),
            pages.table_of(results, entries, ["workload", "method", "test metric", *lengths_header], metrics),
        ]
    )


_DRAWN = (
    "The open end is one run a seed, looked at where it could have been stopped: a shorter run is the beginning of the "
    "longer ones. With the steps given, and for the tuned schedule, each point is a run of its own. Bars are standard "
    "errors over the seeds; a length at which a seed failed has no point."
)


def _curves(at_all_lengths) -> dict[str, _anytime.Curves]:
    """What the picture shows, a panel by its title: workloads on which GeN was trained at more than one length."""
    panels: dict[str, _anytime.Curves] = {}
    for workload, lengths in at_all_lengths.items():
        curves: dict[str, dict[int, _anytime.Point]] = {}
        for rows, rivals in lengths.values():
            for name, row in {"tuned": rivals["gen_horizon"], **{method: method for method in METHODS}}.items():
                if row in rows and (point := _anytime.point(rows[row])) is not None:
                    curves.setdefault(name, {})[rows[row][0]["key"]["num_steps"]] = point
        if any(len(curves.get(method, ())) > 1 for method in METHODS):
            rows, _ = next(iter(lengths.values()))
            about = next(iter(rows.values()))[0]["workload"]
            panels[f"{workload}, {about['metric']} {'↑' if about['higher_is_better'] else '↓'}"] = curves
    return panels


def _draw(results: store.Store, panels: Mapping[str, _anytime.Curves]) -> str:
    path = results.root / "quality_anytime.png"
    _anytime.draw(path, panels)
    return path.name


class Trend(NamedTuple):
    """A slope against log10 of the length; NaN where there are too few gains for it, or for its standard error."""

    slope: float
    standard_error: float
    workloads: int
    gains: int
    failed: int  # gains with a run that diverged or failed: they have no part in the fit


def trend(gains: Mapping[str, Mapping[float, float]]) -> Trend:
    """Fits `gain = a_workload + slope log10(factor)` to `{workload: {factor: gain}}` by least squares."""
    finite = [{x: y for x, y in entries.items() if math.isfinite(y)} for entries in gains.values()]
    failed = sum(map(len, gains.values())) - sum(map(len, finite))
    fitted = [entries for entries in finite if len(entries) > 1]
    if not fitted:
        return Trend(math.nan, math.nan, 0, 0, failed)
    # Less each workload's means, there are no intercepts.
    x = np.concatenate([_centred(np.log10(list(entries.keys()))) for entries in fitted])
    y = np.concatenate([_centred(np.array(list(entries.values()))) for entries in fitted])
    slope = x @ y / (x @ x)
    freedom = len(x) - len(fitted) - 1
    error = np.sqrt(np.sum((y - slope * x) ** 2) / freedom / (x @ x)) if freedom else math.nan
    return Trend(float(slope), float(error), len(fitted), len(x), failed)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


_TREND = ["", "slope per tenfold length", "standard error", "workloads", "gains in the fit", "failed, left out"]


def trends(gains: Gains) -> dict[str, Trend]:
    """The trend of each method; then the same without the workload whose gains lie furthest apart."""
    uneven = least_even(gains)
    fewer = {f"{method}, without `{uneven}`": of for method, of in without(gains, uneven).items()} if uneven else {}
    return {name: trend(of_workloads) for name, of_workloads in {**gains, **fewer}.items()}


def least_even(gains: Gains) -> str | None:
    """The workload whose gains lie furthest apart, which can decide a fit alone; None of fewer than three."""
    spans: dict[str, float] = {}
    for of_workloads in gains.values():
        for workload, entries in of_workloads.items():
            if finite := [gain for gain in entries.values() if math.isfinite(gain)]:
                spans[workload] = max(spans.get(workload, 0.0), max(finite) - min(finite))
    return max(spans, key=spans.__getitem__) if len(spans) > 2 else None


def without(gains: Gains, workload: str) -> Gains:
    """The gains of all other workloads."""
    return {method: {name: of[name] for name in of if name != workload} for method, of in gains.items()}


def _test_metrics(cells_at: Mapping[float, pages.Cells]) -> list[str]:
    """The metric's name, then its mean at each length, and what became of the seeds where some failed."""
    metric = next(iter(cells_at.values()))[0]["workload"]["metric"]
    entries = [metric]
    for factor in FACTORS:
        cells = cells_at.get(factor, [])
        alive = pages.survivors(cells)
        text = pages.mean_and_spread([cell["final"]["test"][metric] for cell in alive])
        entries.append(text if len(alive) == len(cells) else f"{text} ({pages.outcome(cells)})")
    return entries


def _at_all_lengths(results):
    found = {}
    for workload in results.workloads():
        lengths = {factor: seen for factor in FACTORS if (seen := _at(results, workload, factor))}
        if len(lengths) > 1:
            found[workload] = lengths
    return found


def _at(results, workload, factor):
    """`({row: cells}, {row: that of its rival})`; None where this length was not tuned and trained."""
    by_method = pages.by_method(results, workload, factor=factor)
    if not by_method:
        return None
    key = next(iter(by_method.values()))[0]["key"]
    choice = tune.choice(results, key, SCHEDULES)
    if choice is None:
        return None
    names = {choice["schedules"][schedule]["method"]: f"tuned, {schedule}" for schedule in SCHEDULES}
    rivals = {"gen_horizon": names[choice["best"]], "gen": "tuned, constant"}
    names |= {method: method for method in METHODS}
    return {name: by_method[method] for method, name in names.items() if method in by_method}, rivals
