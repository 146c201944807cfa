"""Sensitivity: which settings of GeN matter, and how much?

One setting at a time is moved away from the defaults, with a horizon; sigma and the probe also without one, and the
initial rate also for Algorithm 1.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import methods, store
from benchmarks import report as pages
from benchmarks.questions import Study

WORKLOADS = ("logreg_minibatch", "digits_autoencoder")

_RATES = tuple(f"1e{exponent:+03d}" for exponent in range(-8, 3))

_WIDE = 3  # a panel that spans more than this factor has a logarithmic axis

_SIGMAS = ("1", "1.2", "1.4", "1.6", "1.8", "2", "2.5")
_INDEPENDENT = (
    "finite_difference,batch=independent",
    "finite_difference,batch=4",
    "exact,batch=independent",
    "exact,batch=4",
)

# A factor: the method with a gap for the value, and the values.
FACTORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "initial rate": ("gen_horizon:init_learning_rate={}", ("none", *_RATES)),
    "initial rate, Algorithm 1": ("gen_paper_horizon:init_learning_rate={}", _RATES),
    "memory": ("gen_horizon:memory={}", ("0.5", "1", "2", "4", "8")),
    "every": ("gen_horizon:every={}", ("1", "2", "4", "8", "16", "32")),
    "largest change": ("gen_horizon:max_change={}", ("1.2", "1.5", "2", "4", "10")),
    "probe": ("gen_horizon:probe={}", ("retrospective", *_INDEPENDENT)),
    "probe, no horizon": ("gen:probe={}", ("retrospective", *_INDEPENDENT)),
    "sigma": ("gen_horizon:sigma={}", _SIGMAS),
    "sigma, no horizon": ("gen:sigma={}", _SIGMAS),
}


def run(study: Study) -> None:
    """Trains every value of every factor."""
    specs = list(dict.fromkeys(method for values in plan().values() for method in values.values()))
    for workload in study.chosen(WORKLOADS):
        study.train(workload, specs[:2] if study.tiny else specs)


def plan() -> dict[str, dict[str, str]]:
    """The methods, `{factor: {value: method}}`."""
    return {
        factor: {value: str(methods.parse(template.format(value))) for value in values}
        for factor, (template, values) in FACTORS.items()
    }


def at_given_rates(results: store.Store) -> list[dict[str, Any]]:
    """The cells of GeN at its defaults that were given a rate to begin with, on all workloads."""
    return [cell for given, _ in _given_rates(results) for cells in given for cell in cells]


def worst_given_rate(results: store.Store) -> float:
    """The least gain of a given rate beside none, in per cent, over all that are known; else infinite."""
    gains = [pages.gain(cells, none) for given, none in _given_rates(results) for cells in given]
    return min((gain for gain in gains if gain is not None), default=math.inf)


def _given_rates(results: store.Store) -> Iterator[tuple[list[pages.Cells], pages.Cells | None]]:
    """Of each workload the cells at each given rate, and those without one."""
    none, *given = plan()["initial rate"].values()
    for workload in results.workloads():
        seen = pages.by_method(results, workload)
        yield [seen[method] for method in given if method in seen], seen.get(none)


def report(results: store.Store) -> str | None:
    """A table and a panel per factor."""
    workloads = {name: by_method for name in results.workloads() if (by_method := pages.by_method(results, name))}
    factors = {
        factor: [value for value, method in values.items() if any(method in seen for seen in workloads.values())]
        for factor, values in plan().items()
    }
    factors = {factor: values for factor, values in factors.items() if len(values) > 1}
    if not factors:
        return None
    parts = [pages.opening(f"![sensitivity]({_draw(results, factors, workloads)})", _in_words(factors, workloads))]
    for factor, values in factors.items():
        lines, entries = [], []
        for value in values:
            method = plan()[factor][value]
            for workload, seen in workloads.items():
                if cells := seen.get(method):
                    entries += cells
                    alive = pages.survivors(cells)
                    metric = cells[0]["workload"]["metric"]
                    lines.append(
                        [
                            value,
                            workload,
                            metric,
                            pages.mean_and_spread([cell["final"]["test"][metric] for cell in alive]),
                            pages.mean_and_spread([cell["final"]["test"]["loss"] for cell in alive]),
                            pages.outcome(cells),
                        ]
                    )
        header = ["value", "workload", "metric", "test metric", "test loss", "seeds"]
        parts.append(f"## {factor.capitalize()}\n\n{pages.table_of(results, entries, header, lines)}")
    return "\n\n".join(parts)


def _in_words(factors, workloads):
    """Where seeds fail; else which setting matters most and least, by the worst test loss over the best."""
    spans, seen, failed = {}, 0, {}
    for factor, values in factors.items():
        for workload, by_method in workloads.items():
            groups = [cells for value in values if (cells := by_method.get(plan()[factor][value]))]
            losses = [pages.mean_result(cells, "loss") for cells in groups]
            seen += len(losses)
            if lost := sum(map(np.isinf, losses)):
                failed[factor] = failed.get(factor, 0) + lost
            elif len(losses) > 1 and min(losses) > 0:
                spans.setdefault(factor, {})[workload] = max(losses) / min(losses)
    sentences = []
    if spans:
        widest = {factor: max(of_workloads.values()) for factor, of_workloads in spans.items()}
        most, least = (choose(widest, key=widest.__getitem__) for choose in (max, min))
        where = max(spans[most], key=spans[most].__getitem__)
        sentences.append(
            f'Where none fails, what matters most is "{most}": on `{where}` its worst value ends at '
            f"{pages.number(widest[most])} times the test loss of its best."
        )
        if least != most:
            sentences.append(f'What matters least is "{least}", with a factor of {pages.number(widest[least])}.')
    total = f"A seed fails in {sum(failed.values())} of {seen} combinations of a value and a workload"
    if failed:
        total += ": " + pages.listed(f'{lost} of "{factor}"' for factor, lost in failed.items())
    return [f"{total}.", *sentences]


def _draw(results, factors, workloads):
    path = results.root / "sensitivity.png"
    columns = min(3, len(factors))
    rows = -(-len(factors) // columns)
    with pages.picture(path, columns, rows) as axes:
        for axis in axes.flat[len(factors) :]:
            axis.remove()
        for axis, (factor, values) in zip(axes.flat, factors.items(), strict=False):
            for index, (workload, seen) in enumerate(workloads.items()):
                cells = [seen.get(plan()[factor][value], []) for value in values]
                losses = np.array([pages.mean_result(group, "loss") if group else np.nan for group in cells])
                if np.isfinite(losses).any():
                    relative = losses / np.min(losses[np.isfinite(losses)])
                    style = pages.style(index)
                    axis.plot(range(len(values)), np.where(np.isinf(relative), np.nan, relative), marker="o", **style)
                    failed = np.flatnonzero(np.isinf(relative))
                    axis.plot(failed, np.ones(len(failed)), "x", color=style["color"], ms=9, mew=2)
                    axis.plot([], [], label=workload, **style)
            names = [value.replace(",", ",\n") for value in values]
            axis.set_xticks(range(len(values)), names, rotation=60, ha="right", fontsize=7)
            axis.set(title=factor, ylabel="test loss / least")
            if max(axis.get_ylim()) > _WIDE:
                axis.set_yscale("log")
            else:
                axis.ticklabel_format(axis="y", useOffset=False)
            axis.legend(frameon=False, fontsize=8)
        axes.flat[0].figure.suptitle("crosses: a seed diverged or failed", fontsize=9)
    return path.name
