"""Tunes the baseline as a critic would: a grid of learning rates for each schedule, on the validation split.

Rates lie half a decade apart, at least six of them; a schedule that is held before it falls has three, about the best
of the linear one. Where the best is the lowest or the highest that was tried, the grid grows on that side. In the own
setting of a workload the best two rates of each schedule are trained on two seeds more, and the mean over the three
decides. Other lengths, batch sizes, precisions and bases are tuned on one seed. No reported number comes from any of
these seeds.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks import methods, runner, store
from benchmarks.workload import Workload

# Half-decades: a rate is 10 ** (k / 2).
GRIDS = {"sgd": range(-6, 0), "adamw": range(-8, -2)}  # a base that is not here begins with AdamW's
_LIMITS = (-14, 6)  # a grid that grows beyond has found no optimum
_KIN = {"hold_0.5": "linear"}  # whose best rate the grid lies about
_FINALISTS = 2  # rates of a schedule that are compared on all seeds
Cost = tuple[float, float]
_FAILED = {"diverged": True}  # in place of a run that raised an error, which no store finds


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
    first = runner.TUNING_SEEDS[0]

    def method(schedule: str, exponent: int) -> str:
        spec = methods.Spec("baseline", {"learning_rate": 10 ** (exponent / 2), "schedule": schedule})
        return str(spec if base is None else spec.having(base=base))

    def costs_of(schedule: str, exponents: Iterable[int], seed: int = first) -> dict[int, Cost]:
        keys = {k: runner.cell_key(workload, method(schedule, k), seed, **settings) for k in exponents}
        if missing := [key for key in keys.values() if results.find(key) is None]:
            runner.run_all(missing, workload, results)
        return {k: cost(results.find(key) or _FAILED) for k, key in keys.items()}

    key = runner.cell_key(workload, "momo", first, **settings)
    setting = setting_name(key, base)
    is_own = base is None and key == runner.cell_key(workload, "momo", first)
    seeds = runner.TUNING_SEEDS if is_own else (first,)
    chosen: dict[str, int] = {}
    for schedule in schedules:
        grid = GRIDS.get(base or workload.base, GRIDS["adamw"])
        if (near := chosen.get(_KIN.get(schedule, ""))) is not None:
            grid = range(near - 1, near + 2)
        costs = search(functools.partial(costs_of, schedule), grid)
        finalists = sorted(costs, key=costs.__getitem__)[:_FINALISTS]
        of_seeds = [costs_of(schedule, finalists, seed) for seed in seeds]
        means = {exponent: _mean([of_seed[exponent] for of_seed in of_seeds]) for exponent in finalists}
        best = chosen[schedule] = min(means, key=means.__getitem__)
        entry = {"method": method(schedule, best), "cost": means[best], "seeds": len(seeds)}
        results.set_note("tuned", functools.partial(_with_entry, entry, workload.name, setting, schedule))
    return choice(results, key, schedules, base=base)


def search(costs_of: Callable[[Iterable[int]], dict[int, Cost]], grid: Iterable[int]) -> dict[int, Cost]:
    """The costs of the grid points, the grid growing by a point as long as the least is at an edge."""
    costs = costs_of(grid)
    while True:
        best = min(costs, key=costs.__getitem__)
        if best == min(costs) > _LIMITS[0]:
            new = best - 1
        elif best == max(costs) < _LIMITS[1]:
            new = best + 1
        else:
            return costs
        costs |= costs_of([new])


def cost(cell: dict[str, Any]) -> Cost:
    """What tuning minimises: the validation metric, with its sign, and the loss among equals."""
    if cell["diverged"]:
        return math.inf, math.inf
    final = cell["final"]["validation"]
    value = final[cell["workload"]["metric"]]
    return (-value if cell["workload"]["higher_is_better"] else value), final["loss"]


def _mean(costs: Sequence[Cost]) -> Cost:
    return tuple(sum(parts) / len(costs) for parts in zip(*costs, strict=True))


def choice(
    results: store.Store, key: dict[str, Any], schedules: Sequence[str] | None = None, *, base: str | None = None
) -> dict[str, Any] | None:
    """What `tune` found for a cell's workload under its circumstances; None where a schedule has not been tuned.

    Args:
      results: where `tuned.json` is.
      key: that of the cell.
      schedules: those to choose from; None for all that have been tuned.
      base: that which was tuned; None for the workload's own.

    Returns:
      `{"schedules": {name: {"method": ..., "cost": ..., "seeds": ...}}, "best": method}`.
    """
    known = (results.note("tuned") or {}).get(key["workload"], {}).get(setting_name(key, base), {})
    wanted = [name for name in methods.SCHEDULES if name in known] if schedules is None else schedules
    if not wanted or not set(wanted) <= set(known):
        return None
    chosen = {schedule: known[schedule] for schedule in wanted}

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
