"""Defaults: which settings of GeN serve best on all workloads, by the validation split?

This is where defaults are chosen, and nowhere else; the seeds are others than those of the tables with test results.
A variant is judged beside the tuned baseline on the same seeds: with a horizon the best rate and schedule, without one
the best constant rate.
"""

from typing import Any

import numpy as np

from benchmarks import report as pages
from benchmarks import runner, store, tune
from benchmarks.questions import Study

# With a horizon and without one: what a variant tries, and the method. The first is the default.
VARIANTS: dict[str, dict[str, str]] = {
    "with a horizon": {
        "default": "gen_horizon",
        "greedy: sigma = 1": "gen_horizon:sigma=1",
        "sigma = 1.6": "gen_horizon:sigma=1.6",
        "break-even: sigma = 2": "gen_horizon:sigma=2",
        "up to 32 steps judged as one": "gen_horizon:steps_together=32",
        "what other batches do not confirm counts": "gen_horizon:confirm_errors=1e+30",
        "a hundredth of the best to start with": "gen_horizon:first_fraction=0.01",
        "a twentieth": "gen_horizon:first_fraction=0.05",
        "the first probes weigh up to a quarter": "gen_horizon:max_weight=0.25",
        "search at sigma = 1.1": "gen_horizon:first_sigma=1.1",
        "search at sigma = 1.3": "gen_horizon:first_sigma=1.3",
        "search at break-even": "gen_horizon:first_sigma=2",
        "cosine decay": "gen_horizon:decay=cosine",
        "the decay begins after half of the steps": "gen_horizon:decay=hold_0.5",
        "linear decay from the start": "gen_horizon:decay=linear",
        "probe on an independent batch, sigma = 1.6": "gen_horizon:batch=independent,probe=finite_difference,sigma=1.6",
        "a probe at every step": "gen_horizon:every=1",
        "a probe at every 8th step": "gen_horizon:every=8",
        "a probe at every 8th step, of eight steps": "gen_horizon:every=8,steps_together=8",
        "a probe at every 32nd step": "gen_horizon:every=32",
    },
    "without a horizon": {
        "default": "gen",
        "sigma = 1.2": "gen:sigma=1.2",
        "sigma = 1.8": "gen:sigma=1.8",
        "break-even: sigma = 2": "gen:sigma=2",
        "what other batches do not confirm counts": "gen:confirm_errors=1e+30",
        "search at break-even": "gen:first_sigma=2",
        "decay 1 / sqrt(1 + t / 100)": "gen:decay=inverse_sqrt",
        "evaluated at a mean of the iterates": "gen:average=8",
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
    parts = []
    for kind, variants in VARIANTS.items():
        compared: dict[str, dict[str, Any]] = {}
        for workload in results.workloads():
            seen = pages.by_method(results, workload, reported=False)
            if not seen:
                continue
            choice = tune.choice(results, workload, tune.setting_name(next(iter(seen.values()))[0]["key"]))
            baseline = [] if choice is None else seen.get(_baseline(choice, kind), [])
            for name, method in variants.items():
                cells, beside = _on_the_same_seeds(seen.get(method, []), baseline)
                if cells:
                    compared.setdefault(f"{name}: `{method}`", {})[workload] = cells, beside
        if compared:
            parts.append(f"## {kind.capitalize()}\n\n{pages.gains(compared, 'validation')}")
    parts += filter(None, (_under_stress(results, batch_size) for batch_size in _STRESS_BATCH_SIZES))
    return "\n\n".join(parts) if parts else None


def _under_stress(results: store.Store, batch_size: int) -> str | None:
    def counts(cell):
        return cell["key"]["batch_size"] == batch_size and cell["key"]["seed"] in _STRESS_SEEDS

    seen = pages.grouped(filter(counts, results.cells(STRESS)), lambda cell: cell["key"]["method"])
    values = {
        method: [0 if cell["diverged"] else cell["final"]["validation"][cell["workload"]["metric"]] for cell in cells]
        for method, cells in seen.items()
    }
    best = max((np.median(entries) for entries in values.values()), default=0)
    lines = []
    for kind, variants in VARIANTS.items():
        for name, method in variants.items():
            if entries := values.get(method):
                lost = f"{sum(value < _LOST * best for value in entries)} of {len(entries)}"
                numbers = (float(f(entries)) for f in (np.median, np.mean, min))
                lines.append([kind, f"{name}: `{method}`", *numbers, lost])
    if not lines:
        return None
    note = (
        f"{STRESS}, {batch_size} examples a step, seeds {_STRESS_SEEDS[0]} to {_STRESS_SEEDS[-1]}, validation "
        f"metric. A run is lost that ends below {_LOST} of the best median; one that diverged counts as 0."
    )
    heading = ["", "variant", "median", "mean", "least", "lost"]
    return f"## Under stress, {batch_size} examples a step\n\n{note}\n\n{pages.table(heading, lines)}"


def _train(study, workload, specs, seeds, **settings):
    keys = [runner.cell_key(workload, spec, seed, **settings) for spec in specs for seed in seeds]
    runner.run_all(keys, workload, study.results)


def _baseline(choice: dict[str, Any], kind: str) -> str:
    return choice["best"] if kind == "with a horizon" else choice["schedules"]["constant"]["method"]


def _on_the_same_seeds(*groups):
    """The cells of each group whose seeds all groups have, the tuning seed left out."""
    seeds = set.intersection(*({cell["key"]["seed"] for cell in cells} for cells in groups)) - {runner.TUNING_SEED}
    return [[cell for cell in cells if cell["key"]["seed"] in seeds] for cells in groups]
