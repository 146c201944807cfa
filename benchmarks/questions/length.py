"""Length: does GeN keep up in longer runs, with a baseline that is tuned again at each length?

A rate that is found in the beginning may be too high later on, when noise is most of what is left: a few hundred steps
do not show it. The baseline is the base optimizer at a constant rate and with a linear decay, its rate tuned for each.
"""

from typing import Any

from benchmarks import report as pages
from benchmarks import runner, store, tune
from benchmarks.questions import Study

WORKLOADS = ("gru_moby", "gpt_moby", "digits_autoencoder", "digits_policy")
FACTORS = (1, 4)  # times the workload's own number of steps
METHODS = ("gen_horizon", "gen")
_SCHEDULES = ("constant", "linear")


def run(study: Study) -> None:
    """Tunes and trains at every length."""
    for workload in study.chosen(WORKLOADS):
        for factor in FACTORS:
            num_steps = factor * workload.num_steps
            choice = tune.tune(workload, study.results, schedules=_SCHEDULES, num_steps=num_steps)
            tuned = [choice["schedules"][schedule]["method"] for schedule in _SCHEDULES]
            study.train(workload, [*METHODS, *tuned], num_steps=num_steps)


def report(results: store.Store) -> str | None:
    """Test metric by length, where more than one was trained."""
    compared: dict[str, dict[str, Any]] = {}
    lines = []
    for workload in results.workloads():
        lengths = dict(sorted(_by_length(results, workload).items()))
        if len(lengths) < 2:
            continue
        for num_steps, (rows, rivals) in lengths.items():
            for name, cells in rows.items():
                metric = cells[0]["workload"]["metric"]
                values = [cell["final"]["test"][metric] for cell in pages.survivors(cells)]
                lines.append([workload, num_steps, name, metric, pages.mean_and_spread(values), pages.outcome(cells)])
            for method, rival in rivals.items():
                if method in rows:
                    compared.setdefault(method, {})[f"{workload}, {num_steps:,} steps"] = rows[method], rows[rival]
    if not lines:
        return None
    header = ["workload", "steps", "method", "metric", "test metric", "seeds"]
    beside = "`gen_horizon` beside the better of the two tuned baselines, `gen` beside the tuned constant rate."
    return f"{beside}\n\n{pages.gains(compared)}\n\n{pages.table(header, lines)}"


def _by_length(results, workload):
    """`{steps: ({row: cells}, {method: the row of its rival})}`, where this length was tuned and trained."""
    found = {}
    cells = [cell for cell in results.cells(workload) if runner.is_reported(cell["key"]["seed"])]
    for setting, group in pages.grouped(cells, lambda cell: tune.setting_name(cell["key"])).items():
        key, own = group[0]["key"], group[0]["workload"]
        choice = tune.choice(results, workload, setting, _SCHEDULES)
        if key["batch_size"] != own["batch_size"] or key["precision"] != "float32" or choice is None:
            continue
        if key["num_steps"] not in [factor * own["num_steps"] for factor in FACTORS]:
            continue
        by_method = pages.grouped(group, lambda cell: cell["key"]["method"])
        names = {choice["schedules"][s]["method"]: f"tuned, {s}" for s in _SCHEDULES}
        names |= {method: method for method in METHODS}
        rows = {name: by_method[method] for method, name in names.items() if method in by_method}
        rivals = {"gen_horizon": names[choice["best"]], "gen": f"tuned, {_SCHEDULES[0]}"}
        found[key["num_steps"]] = rows, {m: rival for m, rival in rivals.items() if rival in rows}
    return found
