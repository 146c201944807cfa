"""Batch size: does GeN keep up with a baseline that is tuned again at each size?

Every size sees the same number of examples, but takes at least 50 steps and at most four times the workload's own
number. The baseline is the base optimizer with a cosine decay after a warm-up, its rate tuned at each size.
"""

from typing import Any

import numpy as np

from benchmarks import methods, runner, store, tune
from benchmarks import report as pages
from benchmarks.questions import Study
from benchmarks.workload import Workload

SIZES = (16, 64, 256, 1024, 4096)
# Beyond these the ViT takes minutes a run on a CPU.
WORKLOADS = {"logreg_minibatch": SIZES, "vit_fashion": SIZES[1:4]}
METHODS = ("gen", "gen_horizon", "gen_paper_horizon")
_BASELINE = "tuned baseline"
_SCHEDULE = "warmup_cosine"
_NEAR = -1.0  # per cent


def run(study: Study) -> None:
    """Tunes and trains at every size."""
    for workload in study.chosen(WORKLOADS):
        for size in (8, 16) if study.tiny else WORKLOADS.get(workload.name, SIZES):
            settings = {"batch_size": size, "num_steps": steps(workload, size)}
            choice = tune.tune(workload, study.results, schedules=(_SCHEDULE,), **settings)
            study.train(workload, [choice["best"], *METHODS], **settings)


def steps(workload: Workload, batch_size: int) -> int:
    """As many as see the same number of examples, within limits."""
    same = round(workload.num_steps * workload.batch_size / batch_size)
    return max(min(50, workload.num_steps), min(4 * workload.num_steps, same))


def report(results: store.Store) -> str | None:
    """Test metric by batch size."""
    found = {}
    for workload in results.workloads():
        cells = [cell for cell in results.cells(workload) if runner.is_reported(cell["key"]["seed"])]
        by_setting = pages.grouped(cells, lambda cell: tune.setting_name(cell["key"]))
        by_size = {}
        for group in by_setting.values():
            choice = tune.choice(results, group[0]["key"], (_SCHEDULE,))
            if choice is not None:
                names = {choice["best"]: _BASELINE, **{method: method for method in METHODS}}
                seen = pages.grouped(group, lambda cell: cell["key"]["method"])
                by_size[group[0]["key"]["batch_size"]] = {
                    label: seen[method] for method, label in names.items() if method in seen
                }
        if len(by_size) > 1:
            found[workload] = dict(sorted(by_size.items()))
    if not found:
        return None
    sections = [f"## {workload}\n\n{_table(results, by_size)}" for workload, by_size in found.items()]
    return "\n\n".join([pages.opening(f"![batch size]({_draw(results, found)})", _in_words(found)), *sections])


def _in_words(found: dict[str, dict[int, dict[str, list[Any]]]]) -> list[str]:
    """At how many sizes GeN keeps up, where it is worst, and how its rate grows with the size beside the tuned one."""
    gains: dict[str, dict[tuple[str, int], float]] = {"gen_horizon": {}, "gen": {}}
    for workload, by_size in found.items():
        for size, rows in by_size.items():
            for method, of_method in gains.items():
                if method in rows and (gain := pages.gain(rows[method], rows.get(_BASELINE))) is not None:
                    of_method[workload, size] = gain
    horizon, open_end = gains["gen_horizon"], gains["gen"]
    sentences = [] if horizon or open_end else [pages.NO_GEN]
    if horizon:
        workload, size = min(horizon, key=horizon.__getitem__)
        sentences = [
            f"With the steps given, GeN is ahead of the tuned baseline, or at most {-_NEAR:g} % behind, at "
            f"{_near(horizon)} batch sizes.",
            f"Its worst is `{workload}` with {size:,} examples a step: {pages.beside(horizon[workload, size])}.",
        ]
    if open_end:
        sentences.append(f"With an open end it keeps up in the same sense at {_near(open_end)}.")
    return [*sentences, *(_growth(workload, by_size) for workload, by_size in found.items())]


def _near(gains: dict[tuple[str, int], float]) -> str:
    return f"{sum(gain >= _NEAR for gain in gains.values())} of {len(gains)}"


def _growth(workload: str, by_size: dict[int, dict[str, list[Any]]]) -> str:
    """By which factor the highest rate changes from the least size to the greatest; empty where GeN's is not known."""
    rates: dict[str, dict[int, float]] = {name: {} for name in ("gen_horizon", _BASELINE)}
    for size, rows in by_size.items():
        for name, of_sizes in rates.items():
            known = [cell["highest_learning_rate"] for cell in pages.survivors(rows.get(name, []))]
            if known:
                of_sizes[size] = float(np.mean(known))
    ours, tuned = rates["gen_horizon"], rates[_BASELINE]
    sizes = sorted(ours.keys() & tuned.keys())
    if len(sizes) < 2:
        return ""
    few, many = sizes[0], sizes[-1]
    return (
        f"On `{workload}`, from {few:,} to {many:,} examples, its highest rate changes by a factor of "
        f"{pages.number(ours[many] / ours[few], 2)} and the tuned rate by {pages.number(tuned[many] / tuned[few], 2)}."
    )


def _table(results, by_size):
    lines = []
    for size, rows in by_size.items():
        for name, cells in rows.items():
            metric = cells[0]["workload"]["metric"]
            alive = pages.survivors(cells)
            rate = methods.parse(cells[0]["key"]["method"]).options.get("learning_rate")
            lines.append(
                [
                    size,
                    cells[0]["key"]["num_steps"],
                    name if rate is None else f"{name} ({pages.number(rate)})",
                    pages.mean_and_spread([cell["final"]["test"][metric] for cell in alive]),
                    pages.mean_and_spread([cell["final"]["test"]["loss"] for cell in alive]),
                    pages.mean_and_spread([cell["highest_learning_rate"] for cell in alive], 3),
                    pages.outcome(cells),
                ]
            )
    entries = [cell for rows in by_size.values() for cells in rows.values() for cell in cells]
    header = ["batch size", "steps", "method", f"test {metric}", "test loss", "highest learning rate", "seeds"]
    return pages.table_of(results, entries, header, lines)


def _draw(results, found):
    path = results.root / "batch_size.png"
    with pages.picture(path, len(found)) as axes:
        for axis, (workload, by_size) in zip(axes.flat, found.items(), strict=True):
            for index, name in enumerate((_BASELINE, *METHODS)):
                points = [
                    (size, pages.mean_result(rows[name], "loss")) for size, rows in by_size.items() if name in rows
                ]
                points = [(size, loss) for size, loss in points if np.isfinite(loss)]
                if points:
                    axis.plot(*np.transpose(points), marker="o", label=name, **pages.style(index))
            axis.set_xscale("log", base=2)
            axis.set(xlabel="batch size, examples", ylabel="test loss", title=workload)
            axis.legend(frameon=False, fontsize=8)
    return path.name
