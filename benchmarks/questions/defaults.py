"""Defaults: which settings of GeN serve best on all workloads, by the validation split?

This is where defaults are chosen, and nowhere else; the seeds are others than those of the tables with test results.
A variant is judged beside the tuned baseline on the same seeds: with a horizon the best rate and schedule, without one
the best constant rate.
"""

from typing import Any

import numpy as np

from benchmarks import report as pages
from benchmarks import runner, store, tune
from benchmarks.questions import Study, quality
from gen_optax.plot import BLUE, GREY

# What takes the place of each constant of `balance`: other values, and for most one that makes it ineffective.
_CONSTANTS = {
    "sigma=1": "greedy",
    "sigma=1.6": "",
    "sigma=2": "break-even",
    "max_change=1.41421": "",
    "max_change=4": "",
    "max_change=1e+06": "no limit",
    "search_probes=0": "no search",
    "search_probes=25": "",
    "search_probes=100": "",
    "search_sigma=0.5": "",
    "search_sigma=1.8": "the search aims as high as what follows",
    "memory=1": "",
    "memory=4": "",
    "memory=1e+09": "every probe counts in full",
    "first_fraction=0.015": "",
    "first_fraction=0.06": "",
    "first_fraction=1": "the search begins at what the first step bears",
    "confirm_errors=0.5": "",
    "confirm_errors=2": "",
    "confirm_errors=1e+30": "what other batches do not confirm counts",
    "alignment=0.1": "",
    "alignment=0.4": "",
    "alignment=none": "the rate does not follow the direction of the run",
}
# With a horizon and without one: what a variant tries, and the method. The first is the default.
VARIANTS: dict[str, dict[str, str]] = {
    "with a horizon": {
        "default": "gen_horizon",
        **{f"{name}: {setting}" if name else setting: f"gen_horizon:{setting}" for setting, name in _CONSTANTS.items()},
        "up to 32 steps judged as one": "gen_horizon:steps_together=32",
        "cosine decay": "gen_horizon:decay=cosine",
        "the decay begins after half of the steps": "gen_horizon:decay=hold_0.5",
        "linear decay from the start": "gen_horizon:decay=linear",
        "probe on an independent batch": "gen_horizon:batch=independent,probe=finite_difference",
        "a probe at every step": "gen_horizon:every=1",
        "a probe at every 8th step": "gen_horizon:every=8",
        "a probe at every 32nd step": "gen_horizon:every=32",
    },
    "without a horizon": {
        "default": "gen",
        "without the average": "gen:average=false",
        "sigma=1.6": "gen:sigma=1.6",
        "break-even: sigma=2": "gen:sigma=2",
        "memory=1": "gen:memory=1",
        "memory=4": "gen:memory=4",
        "decay 1 / sqrt(1 + t / 100)": "gen:decay=inverse_sqrt",
        "probe on an independent batch": "gen:batch=independent,probe=finite_difference",
    },
}
# Where a rate that is too high destroys a run: few examples a step, momentum, units that can die. Runs take a second.
STRESS, _STRESS_BATCH_SIZES, _STRESS_SEEDS = "digits_mlp", (4, 8), range(101, 161)
_LOST = 0.8  # of the best variant's median metric: a run that ends below was lost


def run(study: Study) -> None:
    """Trains the tuned baselines and every variant on the seeds of this question, as many as the study has seeds.

    Under stress it is more seeds, since what counts there is rare.
    """
    from benchmarks.workloads import WORKLOADS

    seeds = runner.DEFAULTS_SEEDS[: len(study.seeds)]
    for workload in study.chosen(WORKLOADS):
        choice = tune.tune(workload, study.results)
        for kind, variants in VARIANTS.items():
            chosen = list(variants.values())[:1] if study.tiny else list(variants.values())
            specs = [_baseline(choice, kind), *chosen]
            _train(study, workload, specs, seeds)
            if workload.name == STRESS:
                for batch_size in _STRESS_BATCH_SIZES:
                    _train(study, workload, chosen, _STRESS_SEEDS, batch_size=batch_size)


def report(results: store.Store) -> str | None:
    """How much better or worse than the tuned baseline each variant is, per workload, and what it does under stress."""
    compared = {kind: found for kind in VARIANTS if (found := _compared(results, kind))}
    parts = []
    for kind, of_methods in compared.items():
        rows = {
            f"{name}: `{method}`": of_methods[method] for name, method in VARIANTS[kind].items() if method in of_methods
        }
        parts.append(f"## {kind.capitalize()}\n\n{pages.gains(results, rows, 'validation')}")
    parts += filter(None, (_under_stress(results, batch_size) for batch_size in _STRESS_BATCH_SIZES))
    if not parts:
        return None
    beside = {kind: found for kind, of_methods in compared.items() if (found := _beside_the_default(kind, of_methods))}
    picture = f"![variants beside the default]({_draw(results, beside)})" if beside else ""
    return "\n\n".join(filter(None, [pages.opening(picture, _in_words(results, compared, beside)), *parts]))


def _compared(results: store.Store, kind: str) -> dict[str, dict[str, tuple[list[Any], list[Any]]]]:
    """`{method: {workload: (cells, those of the tuned baseline)}}` of the variants, on the seeds that both have."""
    compared: dict[str, dict[str, Any]] = {}
    for workload in results.workloads():
        seen = pages.by_method(results, workload, reported=False)
        if not seen:
            continue
        choice = tune.choice(results, next(iter(seen.values()))[0]["key"])
        baseline = [] if choice is None else seen.get(_baseline(choice, kind), [])
        for method in VARIANTS[kind].values():
            cells, beside = _on_the_same_seeds(seen.get(method, []), baseline)
            if cells:
                compared.setdefault(method, {})[workload] = cells, beside
    return compared


Beside = dict[str, dict[str, float]]  # per cent by which a variant is better than the default, by method and workload


def _beside_the_default(kind: str, compared: dict[str, dict[str, tuple[list[Any], list[Any]]]]) -> Beside:
    default = next(iter(VARIANTS[kind].values()))
    found: Beside = {}
    for method in compared.keys() - {default} if default in compared else ():
        for workload, (cells, _) in compared[method].items():
            ours = compared[default].get(workload)
            if ours and (gain := pages.gain(cells, ours[0], "validation")) is not None:
                found.setdefault(method, {})[workload] = gain
    return {method: found[method] for method in VARIANTS[kind].values() if method in found}


def _in_words(results: store.Store, compared: dict[str, Any], beside: dict[str, Beside]) -> list[str]:
    """Where the default stands beside the tuned baseline and beside its variants, and what it loses under stress."""
    kind = next(iter(VARIANTS))
    default = VARIANTS[kind]["default"]
    gains = [pages.gain(*pair, "validation") for pair in compared.get(kind, {}).get(default, {}).values()]
    known = [gain for gain in gains if gain is not None]
    sentences = []
    if known:
        sentences.append(
            f"With the steps given, the default is ahead of the tuned schedule, or at most {-quality.LEVEL:g} % "
            f"behind, on {sum(gain >= quality.LEVEL for gain in known)} of {len(known)} workloads."
        )
    variants = beside.get(kind, {})
    most = max(map(len, variants.values()), default=0)
    medians = {method: float(np.median(list(of.values()))) for method, of in variants.items() if len(of) == most}
    if medians:
        best, worst = (choose(medians, key=medians.__getitem__) for choose in (max, min))
        sentences.append(
            f"Of the variants on {most} workloads, by the median `{_setting(best)}` is best beside it, "
            f"{pages.beside(medians[best])}, and `{_setting(worst)}` worst, {pages.beside(medians[worst])}."
        )
    stress = [lost_under_stress(results, size).get(default) for size in _STRESS_BATCH_SIZES]
    if runs := [entry for entry in stress if entry is not None]:
        lost, of = map(sum, zip(*runs, strict=True))
        sentences.append(f"Under stress {lost} of {of} of its runs are lost.")
    return sentences


def _setting(method: str) -> str:
    return method.partition(":")[2]


_EDGE = 10.0  # per cent: what is beyond is drawn there


def _draw(results: store.Store, beside: dict[str, Beside]) -> str:
    """A lane for each variant: a light dot for each workload, a dark one for the median."""
    path = results.root / "defaults.png"
    heights = [0.27 * len(of_methods) + 0.5 for of_methods in beside.values()]
    size = (5.2, sum(heights) + 0.8)
    with pages.picture(path, rows=len(beside), size=size, height_ratios=heights, sharex=True) as axes:
        for axis, (kind, of_methods) in zip(axes.flat, beside.items(), strict=True):
            for y, gains in enumerate(of_methods.values()):
                seen = np.clip(list(gains.values()), -_EDGE, _EDGE)
                axis.plot(seen, np.full(len(seen), y), "o", color=GREY, ms=3, alpha=0.5)
                axis.plot([np.median(seen)], [y], "o", color=BLUE, ms=5)
            axis.axvline(0.0, color="black", lw=1)
            names = [_setting(method).replace(",", ",\n") for method in of_methods]
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.set(xlim=(-1.05 * _EDGE, 1.05 * _EDGE), ylim=(len(names) - 0.5, -0.5))
            axis.set_title(kind, loc="left", fontsize=10)
            axis.grid(axis="x", color="0.92")
        axes[-1, 0].set_xlabel(f"gain beside the default, per cent\n(at most {_EDGE:g} either way; dark: the median)")
    return path.name


def ablated(results: store.Store) -> list[str]:
    """The workloads on which every constant was replaced by all that is to take its place."""
    settings = [f"gen_horizon:{setting}" for setting in _CONSTANTS]
    return [
        workload
        for workload in results.workloads()
        if set(settings) <= pages.by_method(results, workload, reported=False).keys()
    ]


def medians_of_constants(results: store.Store) -> dict[str, float]:
    """Per cent by which each row of a constant is ahead of the default, in the median over the ablated workloads."""
    kind = next(iter(VARIANTS))
    beside, workloads = _beside_the_default(kind, _compared(results, kind)), ablated(results)
    found = {
        setting: [beside.get(f"gen_horizon:{setting}", {}).get(workload) for workload in workloads]
        for setting in _CONSTANTS
    }
    return {
        setting: float(np.median(known))
        for setting, gains in found.items()
        if (known := [gain for gain in gains if gain is not None])
    }


def lost_under_stress(results: store.Store, batch_size: int) -> dict[str, tuple[int, int]]:
    """How many runs of each method are lost under stress, and of how many."""
    values = _validation_metrics(_stressed(results, batch_size))
    best = max((np.median(entries) for entries in values.values()), default=0)
    return {method: (sum(v < _LOST * best for v in entries), len(entries)) for method, entries in values.items()}


def _stressed(results, batch_size):
    def counts(cell):
        return cell["key"]["batch_size"] == batch_size and cell["key"]["seed"] in _STRESS_SEEDS

    return pages.grouped(filter(counts, results.cells(STRESS)), lambda cell: cell["key"]["method"])


def _validation_metrics(seen):
    return {
        method: [0 if cell["diverged"] else cell["final"]["validation"][cell["workload"]["metric"]] for cell in cells]
        for method, cells in seen.items()
    }


def _under_stress(results: store.Store, batch_size: int) -> str | None:
    seen = _stressed(results, batch_size)
    values, lost_of = _validation_metrics(seen), lost_under_stress(results, batch_size)
    lines = []
    for kind, variants in VARIANTS.items():
        for name, method in variants.items():
            if entries := values.get(method):
                lost = "{} of {}".format(*lost_of[method])
                numbers = (float(f(entries)) for f in (np.median, np.mean, min))
                lines.append([kind, f"{name}: `{method}`", *numbers, lost])
    if not lines:
        return None
    note = (
        f"{STRESS}, {batch_size} examples a step, seeds {_STRESS_SEEDS[0]} to {_STRESS_SEEDS[-1]}, validation "
        f"metric. A run is lost that ends below {_LOST} of the best median; one that diverged counts as 0."
    )
    entries = [cell for variants in VARIANTS.values() for method in variants.values() for cell in seen.get(method, [])]
    table = pages.table_of(results, entries, ["", "variant", "median", "mean", "least", "lost"], lines)
    return f"## Under stress, {batch_size} examples a step\n\n{note}\n\n{table}"


def _train(study, workload, specs, seeds, **settings):
    keys = [runner.cell_key(workload, spec, seed, **settings) for spec in specs for seed in seeds]
    runner.run_all(keys, workload, study.results)


def _baseline(choice: dict[str, Any], kind: str) -> str:
    return choice["best"] if kind == "with a horizon" else choice["schedules"]["constant"]["method"]


def _on_the_same_seeds(*groups):
    """The cells of each group whose seeds all groups have, those of tuning left out."""
    seeds = set.intersection(*({cell["key"]["seed"] for cell in cells} for cells in groups)) - {*runner.TUNING_SEEDS}
    return [[cell for cell in cells if cell["key"]["seed"] in seeds] for cells in groups]
