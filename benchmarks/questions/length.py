"""Length: does GeN keep up in longer runs, with a baseline that is tuned again at each length?

A rate that is found in the beginning may be too high later on, when noise is most of what is left: a few hundred steps
do not show it. The baseline is the base optimizer at a constant rate and with a linear decay, its rate tuned for each.
"""

from typing import Any

from benchmarks import report as pages
from benchmarks import store, tune
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
        lengths = [found for factor in FACTORS if (found := _at(results, workload, factor))]
        for rows, rivals in lengths if len(lengths) > 1 else []:
            for name, cells in rows.items():
                metric, num_steps = cells[0]["workload"]["metric"], cells[0]["key"]["num_steps"]
                values = [cell["final"]["test"][metric] for cell in pages.survivors(cells)]
                lines.append([workload, num_steps, name, metric, pages.mean_and_spread(values), pages.outcome(cells)])
                if rivals.get(name) in rows:
                    column = f"{workload}, {num_steps:,} steps"
                    compared.setdefault(name, {})[column] = cells, rows[rivals[name]]
    if not lines:
        return None
    header = ["workload", "steps", "method", "metric", "test metric", "seeds"]
    beside = "`gen_horizon` beside the better of the two tuned baselines, `gen` beside the tuned constant rate."
    return f"{beside}\n\n{pages.gains(compared)}\n\n{pages.table(header, lines)}"


def _at(results, workload, factor):
    """`({row: cells}, {row: that of its rival})`; None where this length was not tuned and trained."""
    by_method = pages.by_method(results, workload, factor=factor)
    if not by_method:
        return None
    key = next(iter(by_method.values()))[0]["key"]
    choice = tune.choice(results, workload, tune.setting_name(key), _SCHEDULES)
    if choice is None:
        return None
    names = {choice["schedules"][schedule]["method"]: f"tuned, {schedule}" for schedule in _SCHEDULES}
    rivals = {"gen_horizon": names[choice["best"]], "gen": "tuned, constant"}
    names |= {method: method for method in METHODS}
    return {name: by_method[method] for method, name in names.items() if method in by_method}, rivals
