"""Robustness: does GeN train any base optimizer, at any batch size and precision?

All combinations of them, GeN at its defaults with a horizon and without one, beside the best constant rate: that base
at that batch size and precision, the one of the best validation metric, which need not be that of the least loss. A run
trains if its training loss ends below a given part of where it began, and keeps up if its test loss ends below a given
multiple of the constant rate's mean.
Instability is the mean of abs(log) of the ratio of the learning rate from one probe to the next.
Sophia and Muon come from optax.contrib; optax has no Shampoo and no SOAP.
"""

import numpy as np

from benchmarks import methods, runner, store, tune
from benchmarks import report as pages
from benchmarks.questions import Study

WORKLOADS = ("digits_mlp",)
METHODS = ("gen_horizon", "gen")
PRECISIONS = ("float32", "mixed", "bfloat16")
FACTORS = (0.25, 1, 4)  # of the workload's own batch size
_TRAINED, _KEPT_UP = 0.5, 1.2
_SCHEDULE, CONSTANT = "constant", "the best constant rate"
_LEAST_DRAWN = 1e-9  # of the first loss; a loss may end at exactly 0


def run(study: Study) -> None:
    """Trains all combinations, and tunes a constant rate for each."""
    bases = ["adamw"] if study.tiny else list(methods.BASES)
    for workload in study.chosen(WORKLOADS):
        for precision in PRECISIONS[:2] if study.tiny else PRECISIONS:
            for factor in (1,) if study.tiny else FACTORS:
                settings = {"batch_size": max(1, round(factor * workload.batch_size)), "precision": precision}
                study.train(workload, [f"{method}:base={base}" for method in METHODS for base in bases], **settings)
                for base in bases:
                    choice = tune.tune(workload, study.results, schedules=(_SCHEDULE,), base=base, **settings)
                    study.train(workload, [choice["best"]], **settings)


def counts(results: store.Store) -> dict[str, tuple[str, str, str]]:
    """In how many combinations all seeds of a method train, all keep up, and their mean does: each "so many of all"."""
    found = {family: [] for family in (*METHODS, CONSTANT)}
    for by_family in _groups(results).values():
        constants = _constants(results, next(iter(by_family.values())))
        constant = _mean_loss(constants)
        if constants:
            found[CONSTANT].append((constants, constant))
        for family, group in by_family.items():
            found[family].append((group, constant))
    return {family: _counts(entries) for family, entries in found.items() if entries}


def _groups(results):
    """`{combination: {method: cells}}`."""
    groups = {}
    for family in METHODS:
        cells = [cell for cell in results.cells(family=family) if _is_asked(cell)]
        for combination, group in pages.grouped(cells, _combination).items():
            groups.setdefault(combination, {})[family] = group
    return dict(sorted(groups.items()))


def report(results: store.Store) -> str | None:
    """How many combinations train and keep up, and a line per combination."""
    groups = _groups(results)
    if not groups:
        return None
    lines, ratios = [], _ratios(results, groups)
    for combination, by_family in groups.items():
        constant = _mean_loss(_constants(results, next(iter(by_family.values()))))
        for family, group in by_family.items():
            alive = pages.survivors(group)
            metric = group[0]["workload"]["metric"]
            trained = sum(map(_has_trained, alive))
            kept_up = None if constant is None else sum(_keeps_up(cell, constant) for cell in alive)
            probes = [cell["probes"] for cell in alive]
            abstained = [1 - seen["accepted"] / seen["probes"] for seen in probes if seen["probes"]]
            lines.append(
                [
                    *combination,
                    family,
                    f"{trained} of {len(group)}",
                    pages.mean_and_spread([cell["final"]["test"][metric] for cell in alive]),
                    pages.mean_and_spread([cell["final"]["test"]["loss"] for cell in alive]),
                    pages.number(constant, 4),
                    "-" if kept_up is None else f"{kept_up} of {len(group)}",
                    pages.mean_and_spread([seen["mean_log_change"] for seen in probes], 2),
                    pages.mean_and_spread(abstained, 2),
                    pages.outcome(group),
                ]
            )
    summary = [[family, *entries] for family, entries in counts(results).items()]
    by_base = [[base, *(seen.get(family) for family in METHODS)] for base, seen in ratios.items()]
    header = ["workload", "base", "batch size", "precision", "method", "trains", "test metric", "test loss"]
    header += ["... of the best constant rate", "keeps up", "instability", "share abstained", "seeds"]
    cells = [cell for by_family in groups.values() for group in by_family.values() for cell in group]
    explained = (
        f"A run trains if its training loss ends below {_TRAINED} of its first. It keeps up if its test loss ends "
        f"below {_KEPT_UP} times the mean of the best constant rate's. The constant rate's own seeds are counted "
        "alike. It is the rate of the best validation metric; another may have a lower loss."
    )
    parts = [
        pages.opening(f"![robustness]({_draw(results, groups)})", _in_words(results)),
        explained,
        pages.table_of(
            results,
            cells,
            ["combinations in which", "all seeds train", "all seeds keep up", "their mean does"],
            summary,
        ),
        "The next table has the test loss over that of the best constant rate. Both are means of the seeds that "
        "reached the end, and the table has the median over batch sizes and precisions.",
        pages.table_of(results, cells, ["base", *METHODS], by_base),
        pages.table_of(results, cells, header, lines),
    ]
    return "\n\n".join(parts)


def _in_words(results):
    """In how many combinations all seeds train, and in how many the test loss is near that of a tuned constant rate."""
    found = counts(results)
    sentences = []
    if "gen_horizon" in found:
        trains, _, near = found["gen_horizon"]
        sentences = [
            f"With the steps given, all seeds train in {trains} combinations of base, batch size and precision.",
            f"Their mean test loss is within {_KEPT_UP} times that of the best constant rate in {near}.",
        ]
    if {"gen", CONSTANT} <= found.keys():
        open_end, constant = found["gen"][0], found[CONSTANT][0]
        sentences.append(
            f"With an open end all seeds train in {open_end}, and with the best constant rate in {constant}."
        )
    if bases := behind(results):
        sentences.append(f"In the median over batch sizes and precisions the ratio is above that with {bases}.")
    return sentences


def behind(results: store.Store) -> str | None:
    """The bases that do not keep up with a horizon, and the ratios of their losses; None where there are none."""
    ratios = {
        base: seen["gen_horizon"] for base, seen in _ratios(results, _groups(results)).items() if "gen_horizon" in seen
    }
    found = [f"`{base}` ({pages.number(ratio, 2)})" for base, ratio in ratios.items() if ratio > _KEPT_UP]
    return pages.listed(found) if found else None


def _ratios(results, groups):
    """`{base: {method: ratio}}`, test loss over the constant rate's, the median over batch sizes and precisions."""
    ratios = {}
    for (_, base, *_), by_family in groups.items():
        constant = _mean_loss(_constants(results, next(iter(by_family.values()))))
        for family, group in by_family.items():
            if constant is not None and (own := _mean_loss(group)) is not None:
                ratios.setdefault(base, {}).setdefault(family, []).append(own / constant)
    return {base: {family: float(np.median(x)) for family, x in seen.items()} for base, seen in ratios.items()}


def _is_asked(cell):
    return list(methods.parse(cell["key"]["method"]).options) == ["base"] and runner.is_reported(cell["key"]["seed"])


def _combination(cell):
    key = cell["key"]
    return key["workload"], methods.parse(key["method"]).options["base"], key["batch_size"], key["precision"]


def _constants(results, group):
    """The cells of the best constant rate on the seeds of a group; none where it is not tuned."""
    key = group[0]["key"]
    choice = tune.choice(results, key, (_SCHEDULE,), base=methods.parse(key["method"]).options["base"])
    if choice is None:
        return []
    return list(filter(None, (results.find({**cell["key"], "method": choice["best"]}) for cell in group)))


def _mean_loss(cells):
    losses = [cell["final"]["test"]["loss"] for cell in pages.survivors(cells)]
    return float(np.mean(losses)) if losses else None


def _counts(entries):
    """Of how many combinations, `(cells, test loss of the best constant rate)`, all seeds train and keep up."""
    compared = [(cells, constant) for cells, constant in entries if constant is not None]
    whole = [(cells, constant) for cells, constant in compared if not any(cell["diverged"] for cell in cells)]
    trains = sum(all(not cell["diverged"] and _has_trained(cell) for cell in cells) for cells, _ in entries)
    every = sum(all(_keeps_up(cell, constant) for cell in cells) for cells, constant in whole)
    mean = sum(_mean_loss(cells) < _KEPT_UP * constant for cells, constant in whole)
    return f"{trains} of {len(entries)}", f"{every} of {len(compared)}", f"{mean} of {len(compared)}"


def _has_trained(cell):
    return cell["final"]["train_loss"] < _TRAINED * cell["first_loss"]


def _keeps_up(cell, constant):
    return cell["final"]["test"]["loss"] < _KEPT_UP * constant


def _draw(results, groups):
    path = results.root / "robustness.png"
    settings = sorted({(workload, size, precision) for workload, _, size, precision in groups})
    bases = list(dict.fromkeys(base for _, base, _, _ in groups))
    with pages.picture(path, len(METHODS)) as axes:
        axes[0, 0].figure.set_size_inches(len(METHODS) * (2 + 0.55 * len(bases)), 1.6 + 0.3 * len(settings))
        for axis, family in zip(axes.flat, METHODS, strict=True):
            losses = np.full((len(settings), len(bases)), np.nan)
            for (workload, base, size, precision), by_family in groups.items():
                group = by_family.get(family, [])
                alive = pages.survivors(group)
                if group and len(alive) == len(group):
                    place = settings.index((workload, size, precision)), bases.index(base)
                    losses[place] = np.mean([cell["final"]["train_loss"] / cell["first_loss"] for cell in alive])
            image = axis.pcolormesh(np.log10(np.maximum(losses, _LEAST_DRAWN)), cmap="cividis_r")
            axis.figure.colorbar(image, ax=axis, label="log10 of last / first training loss")
            axis.set_facecolor("#D55E00")
            axis.set_xticks(np.arange(len(bases)) + 0.5, bases, rotation=60, ha="right", fontsize=8)
            labels = [f"{workload}, {size}, {precision}" for workload, size, precision in settings]
            axis.set_yticks(np.arange(len(settings)) + 0.5, labels, fontsize=8)
            axis.set(xlabel="base optimizer", title=f"{family} (red: a seed diverged or failed)")
    return path.name
