"""The paper's experiments by name: does GeN keep up on a ResNet and with LoRA, and is its cost the one of the formula?

Three experiments of the paper (arXiv 2407.02772) at the size of this suite. GeN-SGD trains a ResNet on images with a
probe at every step, GeN-AdamW trains adapters on sentences, and the cost of a step of a ViT is measured over Phi. The
schedules beside them are tuned on the validation split; Prodigy is the rival that the paper names first.
"""

import functools
from typing import Any

import numpy as np

from benchmarks import report as pages
from benchmarks import runner, store, tune
from benchmarks.questions import Study, overhead
from gen_optax.plot import BLUE, GREY, ORANGE

RESNET, LORA, VIT = "resnet_fashion", "minilm_lora", "vit_fashion"
METHODS: dict[str, tuple[str, ...]] = {
    RESNET: ("gen_paper:every=1", "gen_paper_horizon:every=1", "gen", "gen_horizon"),
    LORA: ("gen_paper", "gen_paper_horizon", "gen", "gen_horizon", "prodigy", "prodigy:schedule=cosine"),
}
PERIODS = (1, 4, 8, 16, 32, 64)
_TURNS = 7
_TUNED, _CONSTANT = "tuned schedule", "tuned constant rate"
_NOTE = "paper"
_TITLES = {
    RESNET: "A ResNet with SGD, Algorithm 1 with a probe at every step",
    LORA: "LoRA with AdamW",
    VIT: "The overhead on a ViT over Φ",
}
Rows = dict[str, list[dict[str, Any]]]


def run(study: Study) -> None:
    """Tunes and trains on both workloads, then measures the ViT at every Phi."""
    names = study.workloads or (*METHODS, VIT)
    for workload in (study.load(name) for name in METHODS if name in names):
        choice = tune.tune(workload, study.results)
        tuned = [choice["best"], choice["schedules"]["constant"]["method"]]
        study.train(workload, [*dict.fromkeys(tuned), *METHODS[workload.name]])
    if VIT in names:
        workload = study.load(VIT)
        with runner.progress_bar() as progress:
            for every in progress.track((2,) if study.tiny else PERIODS, description=VIT):
                key = {"workload": VIT, "every": every}
                turns = 1 if study.tiny else _TURNS
                study.measure(_NOTE, key, functools.partial(overhead.measure, workload, every, turns))


def report(results: store.Store) -> str | None:
    """A picture, what it shows, and a section for each experiment that has results."""
    trained = {name: rows for name in METHODS if (rows := _rows(results, name))}
    measured = sorted(results.note(_NOTE) or [], key=lambda row: row["key"]["every"])
    if not trained and not measured:
        return None
    sections = {name: _trained(results, rows) for name, rows in trained.items()}
    if measured:
        sections[VIT] = _measured(results, measured)
    return "\n\n".join(
        [
            pages.opening(
                f"![the paper's experiments]({_draw(results, trained, measured)})",
                [*(_in_words(name, rows) for name, rows in trained.items()), *_cost_in_words(measured)],
            ),
            *(f"## {_TITLES[name]}\n\n{text}" for name, text in sections.items()),
        ]
    )


def _rows(results: store.Store, workload: str) -> Rows:
    """The cells of each row; none where no run of GeN is known."""
    by_method = pages.by_method(results, workload)
    if not any(method.startswith("gen") and method in by_method for method in METHODS[workload]):
        return {}
    key = next(iter(by_method.values()))[0]["key"]
    choice = tune.choice(results, key)
    tuned = {} if choice is None else {_TUNED: choice["best"], _CONSTANT: choice["schedules"]["constant"]["method"]}
    names = {**tuned, **{method: method for method in METHODS[workload]}}
    return {name: by_method[method] for name, method in names.items() if method in by_method}


def _trained(results: store.Store, rows: Rows) -> str:
    example = next(iter(rows.values()))[0]
    key, metric = example["key"], example["workload"]["metric"]
    lines = []
    for name, cells in rows.items():
        alive = pages.survivors(cells)
        settings = cells[0]["key"]["method"].partition(":")[2] if name in (_TUNED, _CONSTANT) else ""
        lines.append(
            [
                f"{name} ({settings})" if settings else name,
                pages.mean_and_spread([cell["final"]["test"][metric] for cell in alive]),
                pages.mean_and_spread([cell["final"]["test"]["loss"] for cell in alive]),
                pages.mean_and_spread([cell["final"]["train_loss"] for cell in alive]),
                pages.gain(cells, rows.get(_TUNED)),
                pages.outcome(cells),
            ]
        )
    header = ["method", f"test {metric}", "test loss", "training loss", "gain, per cent", "seeds"]
    note = f"`{key['workload']}`, {key['num_steps']:,} steps of {key['batch_size']} examples."
    table = pages.table_of(results, [cell for cells in rows.values() for cell in cells], header, lines)
    return f"{note}\n\n{table}"


def _measured(results: store.Store, rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            row["key"]["every"],
            probe,
            seen["ratio"],
            "{:.3g} to {:.3g}".format(*seen["quartiles"]),
            seen["model"],
            seen["model_with_optimizer"],
        ]
        for row in rows
        for probe, seen in row["probes"].items()
    ]
    header = ["Φ", "probe", "time / base", "quartiles", "1 + kF / (Φ(F + B))", "1 + kF / (Φ S)"]
    note = (
        f"`{VIT}`, {rows[0]['num_parameters']:,} parameters. F is a forward pass, F + B a forward and a backward pass, "
        "S the step of the base optimizer, and k the number of forward passes of a probe."
    )
    return f"{note}\n\n{pages.table_of(results, rows, header, lines)}"


def _in_words(workload: str, rows: Rows) -> str:
    """The best and the worst method of GeN beside the tuned schedule."""
    gains = {name: pages.gain(cells, rows.get(_TUNED)) for name, cells in rows.items() if name.startswith("gen")}
    known = {name: gain for name, gain in gains.items() if gain is not None}
    if not known:
        return f"On `{workload}` there is no tuned schedule to compare with yet."
    best, worst = (choose(known, key=known.__getitem__) for choose in (max, min))
    return (
        f"On `{workload}`, beside the tuned schedule, the best of GeN is `{best}`, {pages.beside(known[best])}, and "
        f"the worst `{worst}`, {pages.beside(known[worst])}."
    )


def _cost_in_words(rows: list[dict[str, Any]]) -> list[str]:
    """The paper's Phi and the default's."""
    probe = next(iter(overhead.DRAWN))
    seen = {row["key"]["every"]: row["probes"][probe] for row in rows}
    return [
        f"With one probe in {every} steps, a step of the ViT takes {seen[every]['ratio']:.2f} times as long as without "
        f"GeN; the formula says {seen[every]['model']:.2f}."
        for every in (8, 16)
        if every in seen
    ]


def _draw(results: store.Store, trained: dict[str, Rows], measured: list[dict[str, Any]]) -> str:
    path = results.root / "paper.png"
    heights = [0.3 * len(rows) + 0.9 for rows in trained.values()] + [3.2] * bool(measured)
    with pages.picture(path, rows=len(heights), size=(5.2, sum(heights)), height_ratios=heights) as axes:
        for axis, (workload, rows) in zip(axes.flat, trained.items(), strict=False):
            _draw_trained(axis, rows)
            axis.set_title(_TITLES[workload], loc="left", fontsize=10)
        if measured:
            _draw_measured(axes[-1, 0], measured)
            axes[-1, 0].set_title(_TITLES[VIT], loc="left", fontsize=10)
    return path.name


def _draw_trained(axis: Any, rows: Rows) -> None:
    """The mean of the test metric with its standard error, a lane for each method; a cross where a seed failed."""
    metric = next(iter(rows.values()))[0]["workload"]["metric"]
    for y, (name, cells) in enumerate(rows.items()):
        values = [cell["final"]["test"][metric] for cell in pages.survivors(cells)]
        if values:
            error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
            colour = BLUE if name in ("gen", "gen_horizon") else ORANGE if name.startswith("gen") else GREY
            whole = len(values) == len(cells)
            axis.errorbar(np.mean(values), y, xerr=error, color=colour, marker="o" if whole else "x", ls="")
    axis.set_yticks(range(len(rows)), rows, fontsize=9)
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"test {metric}")
    axis.grid(axis="x", color="0.92")


def _draw_measured(axis: Any, rows: list[dict[str, Any]]) -> None:
    """Measured ratios with their quartiles, and dotted what the paper's formula says."""
    periods = [row["key"]["every"] for row in rows]
    for probe, (label, colour) in overhead.DRAWN.items():
        seen = [row["probes"][probe] for row in rows]
        ratios = np.array([entry["ratio"] for entry in seen])
        bars = np.abs(np.array([entry["quartiles"] for entry in seen]).T - ratios)
        axis.errorbar(periods, ratios, yerr=bars, color=colour, marker="o", label=label)
        axis.plot(periods, [entry["model"] for entry in seen], color=colour, ls=":")
    axis.plot([], [], color=GREY, ls=":", label="1 + kF / (Φ(F + B))")
    axis.axhline(1.0, color=GREY, lw=0.8)
    axis.set_xscale("log", base=2)
    axis.set_xticks(periods, map(str, periods))
    axis.set(xlabel="Φ, steps per probe", ylabel="time of a step / of the base step")
    axis.legend(frameon=False, fontsize=9)
