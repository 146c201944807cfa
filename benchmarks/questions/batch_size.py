"""Batch size: does GeN keep up with a baseline that is tuned again at each size?

Every size sees the same number of examples, but takes at least 50 steps and at most four times the workload's own
number. The baseline is the base optimizer with a cosine decay after a warm-up, its rate tuned at each size.
"""

import numpy as np

from benchmarks import methods, runner, store, tune
from benchmarks import report as pages
from benchmarks.questions import Study
from benchmarks.workload import Workload

WORKLOADS = ("logreg_minibatch", "vit_fashion")
SIZES = (16, 64, 256, 1024, 4096)
METHODS = ("gen", "gen_horizon", "gen_paper_horizon")
_BASELINE = "tuned baseline"
_SCHEDULE = "warmup_cosine"


def run(study: Study) -> None:
    """Tunes and trains at every size."""
    for workload in study.chosen(WORKLOADS):
        for size in (8, 16) if study.tiny else SIZES:
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
        for name, group in by_setting.items():
            choice = tune.choice(results, workload, name, (_SCHEDULE,))
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
    return "\n\n".join([f"![batch size]({_draw(results, found)})", *sections])


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
