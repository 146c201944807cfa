"""Defaults: which settings of GeN serve best on all workloads, by the validation split?

This is where defaults are chosen, and nowhere else; the seeds are others than those of the tables with test results.
A variant is judged beside the tuned baseline on the same seeds: with a horizon the best rate and schedule, without one
the best constant rate.
"""

from typing import Any

from benchmarks import report as pages
from benchmarks import runner, store, tune
from benchmarks.questions import Study

# With a horizon and without one: what a variant tries, and the method. The first is the default.
VARIANTS: dict[str, dict[str, str]] = {
    "with a horizon": {
        "default": "gen_horizon",
        "greedy: sigma = 1": "gen_horizon:sigma=1.0",
        "sigma = 1.6": "gen_horizon:sigma=1.6",
        "cosine decay": "gen_horizon:decay=cosine",
        "probe on the gradient's batch": "gen_horizon:probe=finite_difference",
        "the same with an independent batch": "gen_horizon:batch=independent,probe=finite_difference",
        "averages of b and A": "gen_horizon:smooth=coefficients",
        "Φ = 1": "gen_horizon:every=1",
        "Φ = 32": "gen_horizon:every=32",
    },
    "without a horizon": {
        "default": "gen",
        "break-even: sigma = 2": "gen:sigma=2.0",
        "sigma = 1.6": "gen:decay=constant,sigma=1.6",
        "sigma = 1.6, decay 1 / sqrt(1 + t / 100)": "gen:decay=inverse_sqrt,sigma=1.6",
        "sigma = 2, decay 1 / sqrt(1 + t / 100)": "gen:decay=inverse_sqrt,sigma=2.0",
        "sigma = 1.2": "gen:sigma=1.2",
        "evaluated at a mean of the iterates": "gen:average=8,decay=constant,sigma=1.6",
        "the same, sigma = 2": "gen:average=8,sigma=2.0",
        "probe on the gradient's batch": "gen:probe=finite_difference",
        "with an independent batch": "gen:batch=independent,probe=finite_difference",
    },
}


def run(study: Study) -> None:
    """Trains the tuned baselines and every variant on the seeds of this question, as many as the study has seeds."""
    from benchmarks.workloads import WORKLOADS

    seeds = runner.DEFAULTS_SEEDS[: len(study.seeds)]
    for workload in study.chosen(WORKLOADS):
        choice = tune.tune(workload, study.results)
        for kind, variants in VARIANTS.items():
            chosen = list(variants.values())[:1] if study.tiny else variants.values()
            keys = [
                runner.cell_key(workload, spec, seed) for spec in (_baseline(choice, kind), *chosen) for seed in seeds
            ]
            runner.run_all(keys, workload, study.results)


def report(results: store.Store) -> str | None:
    """By how much each variant is better or worse than the tuned baseline, per workload."""
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
    return "\n\n".join(parts) if parts else None


def _baseline(choice: dict[str, Any], kind: str) -> str:
    return choice["best"] if kind == "with a horizon" else choice["schedules"]["constant"]["method"]


def _on_the_same_seeds(*groups):
    """The cells of each group whose seeds all groups have, the tuning seed left out."""
    seeds = set.intersection(*({cell["key"]["seed"] for cell in cells} for cells in groups)) - {runner.TUNING_SEED}
    return [[cell for cell in cells if cell["key"]["seed"] in seeds] for cells in groups]
