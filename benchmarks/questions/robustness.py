"""Robustness: does GeN train any base optimizer, at any batch size and precision?

All combinations of them, GeN at its defaults with a horizon. A run trains if its training loss ends below a given part
of where it began. Instability is the mean of abs(log) of the ratio of the learning rate from one probe to the next.
Sophia and Muon come from optax.contrib; optax has no Shampoo and no SOAP.
"""

import numpy as np

from benchmarks import methods, runner, store
from benchmarks import report as pages
from benchmarks.questions import Study

WORKLOADS = ("digits_mlp",)
PRECISIONS = ("float32", "mixed", "bfloat16")
_FACTORS = (0.25, 1, 4)  # of the workload's own batch size
_TRAINED = 0.5


def run(study: Study) -> None:
    """Trains all combinations."""
    bases = list(methods.BASES)[:1] if study.tiny else list(methods.BASES)
    for workload in study.chosen(WORKLOADS):
        for precision in PRECISIONS[:2] if study.tiny else PRECISIONS:
            for factor in (1,) if study.tiny else _FACTORS:
                size = max(1, round(factor * workload.batch_size))
                specs = [f"gen_horizon:base={base}" for base in bases]
                study.train(workload, specs, batch_size=size, precision=precision)


def report(results: store.Store) -> str | None:
    """A line per combination."""
    cells = [
        cell
        for cell in results.cells(family="gen_horizon")
        if list(methods.parse(cell["key"]["method"]).options) == ["base"] and runner.is_reported(cell["key"]["seed"])
    ]
    if not cells:
        return None
    groups = pages.grouped(
        cells,
        lambda cell: (
            cell["key"]["workload"],
            methods.parse(cell["key"]["method"]).options["base"],
            cell["key"]["batch_size"],
            cell["key"]["precision"],
        ),
    )
    lines = []
    for (workload, base, size, precision), group in sorted(groups.items()):
        alive = pages.survivors(group)
        metric = group[0]["workload"]["metric"]
        trained = sum(_has_trained(cell) for cell in alive)
        probes = [cell["probes"] for cell in alive]
        lines.append(
            [
                workload,
                base,
                size,
                precision,
                f"{trained} of {len(group)}",
                pages.mean_and_spread([cell["final"]["test"][metric] for cell in alive]),
                pages.mean_and_spread([cell["final"]["train_loss"] for cell in alive]),
                pages.mean_and_spread([seen["mean_log_change"] for seen in probes], 2),
                pages.mean_and_spread([1 - seen["accepted"] / seen["probes"] for seen in probes if seen["probes"]], 2),
                pages.outcome(group),
            ]
        )
    header = ["workload", "base", "batch size", "precision", "trains", "test metric", "training loss", "instability"]
    picture = _draw(results, groups)
    table = pages.table([*header, "share abstained", "seeds"], lines)
    return f"A run trains if it ends below {_TRAINED} of its first loss.\n\n![robustness]({picture})\n\n{table}"


def _has_trained(cell):
    losses = cell["curves"]["loss"]
    return cell["final"]["train_loss"] < _TRAINED * losses[0]


def _draw(results, groups):
    path = results.root / "robustness.png"
    settings = sorted({(workload, size, precision) for workload, _, size, precision in groups})
    bases = list(dict.fromkeys(base for _, base, _, _ in groups))
    with pages.picture(path) as axes:
        axis = axes[0, 0]
        axis.figure.set_size_inches(2 + 0.55 * len(bases), 1.6 + 0.3 * len(settings))
        losses = np.full((len(settings), len(bases)), np.nan)
        for (workload, base, size, precision), group in groups.items():
            alive = pages.survivors(group)
            if len(alive) == len(group):
                place = settings.index((workload, size, precision)), bases.index(base)
                losses[place] = np.mean([cell["final"]["train_loss"] / cell["curves"]["loss"][0] for cell in alive])
        image = axis.pcolormesh(np.log10(losses), cmap="cividis_r")
        axis.figure.colorbar(image, ax=axis, label="log10 of last / first training loss")
        axis.set_facecolor("#D55E00")
        axis.set_xticks(np.arange(len(bases)) + 0.5, bases, rotation=60, ha="right", fontsize=8)
        labels = [f"{workload}, {size}, {precision}" for workload, size, precision in settings]
        axis.set_yticks(np.arange(len(settings)) + 0.5, labels, fontsize=8)
        axis.set(xlabel="base optimizer", title="red: a seed diverged or failed")
    return path.name
