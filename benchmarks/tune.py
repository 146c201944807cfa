"""Tunes the baseline as a critic would: a grid of learning rates for each schedule, on the validation split.

Rates lie half a decade apart, at least six of them; where the best is the lowest or the highest that was tried, the
grid grows on that side. One seed is spent on it, and no reported number comes from that seed.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import methods, runner, store
from benchmarks.workload import Workload

# Half-decades: a rate is 10 ** (k / 2).
GRIDS = {"sgd": range(-6, 0), "adamw": range(-8, -2)}  # a base that is not here begins with AdamW's
_LIMITS = (-14, 6)  # a grid that grows beyond has found no optimum


def tune(
    workload: Workload,
    results: store.Store,
    *,
    schedules: Sequence[str] = methods.SCHEDULES,
    base: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The best rate of each schedule and the best of all; cells that are finished already are not run again.

    Args:
      workload: what to tune on.
      results: where the cells are, and `tuned.json`, to which the choice is added.
      schedules: those to try.
      base: the base optimizer, one of `methods.BASES`; None for the workload's own.
      **settings: of `runner.cell_key`, where they differ from the workload's own.

    Returns:
      As `choice` does.
    """

    def method(schedule: str, exponent: int) -> str:
        spec = methods.Spec("baseline", {"learning_rate": 10 ** (exponent / 2), "schedule": schedule})
        return str(spec if base is None else spec.having(base=base))

    def key_of(schedule: str, exponent: int) -> dict[str, Any]:
        return runner.cell_key(workload, method(schedule, exponent), runner.TUNING_SEED, **settings)

    def cost_of(schedule: str, exponent: int) -> tuple[float, float]:
        key = key_of(schedule, exponent)
        return cost(results.find(key) or runner.run_all([key], workload, results)[0])

    grid = GRIDS.get(base or workload.base, GRIDS["adamw"])
    runner.run_all([key_of(schedule, exponent) for schedule in schedules for exponent in grid], workload, results)
    setting = setting_name(runner.cell_key(workload, "momo", runner.TUNING_SEED, **settings), base)
    for schedule in schedules:
        exponent, lowest = search(functools.partial(cost_of, schedule), grid)
        entry = {"method": method(schedule, exponent), "cost": lowest}
        results.set_note("tuned", functools.partial(_with_entry, entry, workload.name, setting, schedule))
    return choice(results, workload.name, setting, schedules)


def search(cost_of: Callable[[int], Any], grid: Sequence[int]) -> tuple[int, Any]:
    """The grid point of least cost and that cost, the grid growing by a point as long as the least is at an edge."""
    costs = {point: cost_of(point) for point in grid}
    while True:
        best = min(costs, key=costs.__getitem__)
        if best == min(costs) > _LIMITS[0]:
            new = best - 1
        elif best == max(costs) < _LIMITS[1]:
            new = best + 1
        else:
            return best, costs[best]
        costs[new] = cost_of(new)


def cost(cell: dict[str, Any]) -> tuple[float, float]:
    """What tuning minimises: the validation metric, with its sign, and the loss among equals."""
    if cell["diverged"]:
        return math.inf, math.inf
    final = cell["final"]["validation"]
    value = final[cell["workload"]["metric"]]
    return (-value if cell["workload"]["higher_is_better"] else value), final["loss"]


def choice(
    results: store.Store, workload: str, setting: str, schedules: Sequence[str] = methods.SCHEDULES
) -> dict[str, Any] | None:
    """What `tune` found, by `tuned.json`; None where a schedule has not been tuned under this `setting_name`.

    Returns:
      `{"schedules": {name: {"method": ..., "cost": ...}}, "best": method}`.
    """
    known = (results.note("tuned") or {}).get(workload, {}).get(setting, {})
    if not set(schedules) <= set(known):
        return None
    chosen = {schedule: known[schedule] for schedule in schedules}

    def cost_of(entry):  # JSON has no infinity
        return [math.inf if part is None else part for part in entry["cost"]]

    return {"schedules": chosen, "best": min(chosen.values(), key=cost_of)["method"]}


def _with_entry(entry, workload, setting, schedule, notes):
    notes = notes or {}
    settings = notes.get(workload, {})
    return {**notes, workload: {**settings, setting: {**settings.get(setting, {}), schedule: entry}}}


def setting_name(key: dict[str, Any], base: str | None = None) -> str:
    """Under what circumstances a cell was trained, as the entries of `tuned.json` are named."""
    name = f"batch {key['batch_size']}, {key['num_steps']} steps, {key['precision']}"
    return name if base is None else f"{name}, {base}"
