"""Quality: how well does each method train, beside a tuned baseline?

The page opens with a picture of the gain on each workload. The baseline is the workload's base optimizer with learning
rate and schedule chosen by `benchmarks.tune`; its rows by schedule are there too, and AdamW and SGD at rates that
nobody tuned. Ranks are by the test metric. The performance profile is the share of workloads on which a method's cost
is within a factor tau of the least cost: once for the final test loss, where it is positive for all, once for the steps
that a method needs to reach the training loss at which every seed of the tuned baseline ends. On cheap workloads runs
of other lengths are compared as well. The page has no seconds: its runs are made at different times, beside others on
the same machine. `overhead` measures them in turns.
"""

import collections
import math
from typing import Any

import numpy as np

from benchmarks import methods, rule, runner, store, tune
from benchmarks import report as pages
from benchmarks.questions import Study, _gains, _lengths
from gen_optax.plot import BLUE, GREEN, GREY, ORANGE

Rows = dict[str, list[dict[str, Any]]]  # the cells of the reported seeds by the name of the method

TUNED = "tuned baseline"
_SCHEDULES = {
    "constant": "constant baseline",
    "linear": "linear baseline",
    "hold_0.5": "hold, then linear baseline",
    "warmup_cosine": "warmup, cosine baseline",
}
# The columns of the summary.
_IN_SHORT = {
    "tuned rate and schedule": TUNED,
    "**GeN, `num_steps` given**": "gen_horizon",
    "tuned constant rate": _SCHEDULES["constant"],
    "**GeN, open end**": "gen",
    "Prodigy with cosine": "prodigy:schedule=cosine",
    "schedule-free AdamW": "schedule_free_adamw",
}
# Those of the README, and its workloads: of several kinds, from where GeN is ahead to where it loses.
_IN_BRIEF = {
    "AdamW at 1e-3, untuned": "untuned AdamW, 1e-3",
    "tuned schedule": TUNED,
    "**GeN, steps given**": "gen_horizon",
    "**GeN, open end**": "gen",
}
_BRIEF = ("gpt_moby", "digits_autoencoder", "logreg_minibatch", "diffusion_digits", "word2vec_moby", "pinn_burgers")
LEVEL = -0.1
"""A mean metric is level with another if it is not worse by more per cent than this."""
# What the profiles draw, its name for readers, and its colour: GeN and what people use. The tables have all methods.
_IN_PROFILES = {
    "gen_horizon": ("GeN, steps given", BLUE),
    "gen": ("GeN, open end", ORANGE),
    TUNED: ("tuned baseline", "black"),
    "untuned AdamW, 1e-3": ("AdamW at 1e-3, untuned", GREY),
    "prodigy:schedule=cosine": ("Prodigy with cosine", GREEN),
    "schedule_free_adamw:warmup=0.05": ("schedule-free AdamW", "#CC79A7"),
}
_BEST_OTHER = "#56B4E9"
_TITLES = {
    1: "The workload's own steps",
    0.25: "A quarter of the steps",
    4: "Four times the steps",
    10: "Ten times the steps",
}
_LEAST_LOSS = (
    1e-6  # positive test losses below count as this: ratios of losses that are all zero to the eye mean nothing
)


def run(study: Study) -> None:
    """Tunes, then trains the chosen baselines and every method on the reported seeds."""
    from benchmarks.workloads import WORKLOADS

    for workload in study.chosen(WORKLOADS):
        choice = tune.tune(workload, study.results)
        study.train(workload, [entry["method"] for entry in choice["schedules"].values()])
        study.train(workload, [*methods.QUALITY, *methods.UNTUNED.values()])
    _lengths.run(study)


def report(results: store.Store) -> str | None:
    """The gains in a picture, ranks, profiles, the trend with the length of runs, and a table per workload."""
    groups = groups_of(results)
    if not groups:
        return None
    compared = beside_the_tuned(groups)
    behind = far_behind(compared)
    kept = {name: pairs for name, pairs in compared.items() if name not in behind}
    parts = [
        *_opening(results, groups),
        f"## In short\n\n{summary(results, groups)}",
        "\n\n".join(["## Beside the tuned baseline", *([_APART] if behind else []), pages.gains(results, kept)]),
        _ranking(results, comparable(groups)),
        _profiles(results, comparable(groups)),
    ]
    if (lengths := _lengths.section(results)) is not None:
        parts.append(f"## In shorter and longer runs\n\n{lengths}")
    parts += [f"## {workload}\n\n{_table(results, rows)}" for workload, rows in groups.items()]
    if behind:
        table = pages.gains(results, {name: compared[name] for name in behind})
        parts.append(f"## Supplement\n\n{_SUPPLEMENT}\n\n{table}")
    return "\n\n".join(filter(None, parts))


def _opening(results: store.Store, groups: dict[str, Rows]) -> list[str]:
    """A picture of the gains, what it shows, and how to read it, where GeN was trained."""
    lengths = {title: groups if factor == 1 else groups_of(results, factor) for factor, title in _TITLES.items()}
    panels = {title: panel for title, rows in lengths.items() if (panel := _panel(rows))}
    if not panels:
        return [pages.NO_GEN]
    path = results.root / "quality_gains.png"
    _gains.draw(path, panels)
    drawn = [
        cell
        for title, panel in panels.items()
        for workload, gains in panel.items()
        for method in gains
        for cell in lengths[title][workload][method]
    ]
    picture = f"![The gain on each workload beside the tuned baseline]({path.name})"
    return [
        pages.opening(picture, _read_off(groups)),
        " ".join(filter(None, [_BARS, _tuning(results, groups), _scattered(groups)])),
        rule.describe(results, drawn),
    ]


_BARS = (
    "Bars are standard errors of the gain, from the spread over the seeds of both. The baseline is tuned again for "
    "each length."
)


def _tuning(results: store.Store, groups: dict[str, Rows]) -> str:
    """On how many seeds the baselines were tuned, and which of them on one, or with fewer schedules."""
    partly = []
    for workload, rows in groups.items():
        key = next(iter(rows.values()))[0]["key"]
        choice = tune.choice(results, key)
        if choice is None:
            continue
        seeds = min(entry.get("seeds", 1) for entry in choice["schedules"].values())
        if seeds < len(runner.TUNING_SEEDS) or choice["schedules"].keys() < _SCHEDULES.keys():
            partly.append(f"`{workload}`")
    chosen = f"At a workload's own length the mean of {len(runner.TUNING_SEEDS)} validation seeds decides."
    return f"{chosen} On {pages.listed(partly)} one seed decided, among fewer schedules." if partly else chosen


_WIDE = 0.1  # of the mean


def _scattered(groups: dict[str, Rows]) -> str:
    """Where the tuned baseline's seeds lie far apart, so that a gain there is a matter of seeds."""
    spreads = {}
    for workload, rows in groups.items():
        cells = pages.survivors(rows.get(TUNED, []))
        values = [cell["final"]["test"][cell["workload"]["metric"]] for cell in cells]
        if len(values) > 1 and not _is_function(rows):
            spreads[workload] = float(np.std(values, ddof=1)) / abs(float(np.mean(values)))
    wide = [f"`{name}`" for name in sorted(spreads, key=spreads.__getitem__, reverse=True) if spreads[name] > _WIDE]
    if not wide:
        return ""
    return (
        f"On {pages.listed(wide)} the tuned baseline's own seeds have a standard deviation of more than {_WIDE:.0%} of "
        "their mean: a gain there says little."
    ).replace("%", " %")


def _panel(groups: dict[str, Rows]) -> dict[str, dict[str, _gains.Gain]]:
    """The gains, by workload and method, on those where GeN and the tuned baseline are known."""
    panel: dict[str, dict[str, _gains.Gain]] = {}
    for workload, rows in groups.items():
        baseline = rows.get(TUNED)
        for method in _gains.METHODS if _has_gen(rows) and baseline else ():
            if method in rows and (gain := pages.gain(rows[method], baseline)) is not None:
                error = pages.gain_error(rows[method], baseline)
                panel.setdefault(workload, {})[method] = _gains.Gain(gain, error)
    return panel


def _read_off(groups: dict[str, Rows]) -> list[str]:
    """On how many workloads GeN keeps up, and where it does not."""
    gains = gains_of(groups)
    horizon, open_end = gains["gen_horizon"], gains["gen"]
    sentences = []
    if horizon:
        level = [sum(gain >= LEVEL for gain in of_workloads.values()) for of_workloads in (horizon, open_end)]
        sentences = [
            f"With the steps given, GeN is ahead of the tuned baseline, or at most {-LEVEL:g} % behind, on {level[0]} "
            f"of {len(horizon)} workloads.",
            f"With an open end it keeps up in the same sense on {level[1]}.",
        ]
    behind = [workload for workload in horizon if min(horizon[workload], open_end[workload]) < LEVEL]
    if behind:
        names = [f"`{workload}`" for workload in sorted(behind, key=horizon.__getitem__)]
        sentences.append(f"It loses on {f'{len(names)}, most on ' if names[3:] else ''}{pages.listed(names[:3])}.")
    return sentences


def gains_of(groups: dict[str, Rows]) -> dict[str, dict[str, float]]:
    """Per cent beside the tuned baseline by workload, with a horizon and with an open end, where both are known."""
    compared = beside_the_tuned(groups)
    found = {
        method: {
            workload: gain
            for workload, (cells, baseline) in compared.get(method, {}).items()
            if (gain := pages.gain(cells, baseline)) is not None
        }
        for method in ("gen_horizon", "gen")
    }
    common = [workload for workload in found["gen_horizon"] if workload in found["gen"]]
    return {method: {workload: gains[workload] for workload in common} for method, gains in found.items()}


def beside_the_tuned(groups: dict[str, Rows]) -> dict[str, dict[str, tuple[list[Any], list[Any]]]]:
    """The cells of each row on each workload, and those of the tuned baseline there."""
    compared: dict[str, dict[str, Any]] = {name: {} for name in (TUNED, *_SCHEDULES.values(), *_others())}
    for workload, rows in groups.items():
        for name in rows if TUNED in rows else ():
            compared[name][workload] = rows[name], rows[TUNED]
    return compared


_FAR, _MOSTLY = -5.0, 0.7
_SUPPLEMENT = (
    f"The peers here are worse than the tuned baseline by more than {-_FAR:g} % on more than {100 * _MOSTLY:g} % of "
    "their workloads. The ranks, the profiles and the tables of single workloads have them, too."
)
_APART = "Peers that are far behind on most workloads stand in a [supplement](#supplement)."
_NEVER_APART = (TUNED, *_SCHEDULES.values(), *methods.UNTUNED, "gen", "gen_horizon", "gen_paper", "gen_paper_horizon")


def far_behind(compared: dict[str, dict[str, tuple[list[Any], list[Any]]]]) -> list[str]:
    """The peers that have no place in the first table: far behind nearly everywhere."""
    found = []
    for name, pairs in compared.items():
        seen = [gain for pair in pairs.values() if (gain := pages.gain(*pair)) is not None]
        if name not in _NEVER_APART and seen and np.mean([gain < _FAR for gain in seen]) > _MOSTLY:
            found.append(name)
    return found


def _others() -> dict[str, str]:
    """The rows beside the tuned baselines, by name, and their methods."""
    return {**{method: method for method in methods.QUALITY}, **methods.UNTUNED}


def groups_of(results: store.Store, factor: float = 1) -> dict[str, Rows]:
    """The rows of every workload that has any, in runs of `factor` times its own steps."""
    return {workload: rows for workload in results.workloads() if (rows := _rows(results, workload, factor))}


def summary(results: store.Store, groups: dict[str, Rows]) -> str:
    """A line per workload on which GeN was trained, and the first methods to compare."""
    table, entries = _lines(groups, _IN_SHORT)
    parts = [table, rule.describe(results, entries)]
    if missing := [f"`{workload}`" for workload, rows in groups.items() if not _has_gen(rows)]:
        parts.append(f"Not trained by today's rule yet, and left out: {', '.join(missing)}.")
    return "\n\n".join(filter(None, parts))


def brief(results: store.Store, groups: dict[str, Rows]) -> str:
    """The same for the README: six workloads, and what people do who tune and who do not."""
    table, entries = _lines({workload: groups[workload] for workload in _BRIEF if workload in groups}, _IN_BRIEF)
    return "\n\n".join(filter(None, [table, rule.in_plain_words(results, entries)]))


def _lines(groups: dict[str, Rows], columns: dict[str, str]) -> tuple[str, list[dict[str, Any]]]:
    """A table, and the cells that it was made of."""
    lines, entries = [], []
    for workload, rows in groups.items():
        if not _has_gen(rows):
            continue
        entries += [cell for method in columns.values() for cell in rows.get(method, [])]
        example = next(iter(rows.values()))[0]["workload"]
        name = f"{workload}, {example['metric']} {'↑' if example['higher_is_better'] else '↓'}"
        lines.append([name, *(_test_metric(rows.get(method, [])) for method in columns.values())])
    return pages.table(["", *columns], lines), entries


def _has_gen(rows: Rows) -> bool:
    return bool({"gen", "gen_horizon"} & rows.keys())


def _test_metric(cells: list[dict[str, Any]]) -> str:
    values = [cell["final"]["test"][cell["workload"]["metric"]] for cell in pages.survivors(cells)]
    failed = len(cells) - len(values)
    return pages.mean_and_spread(values) + (f" ({failed} of {len(cells)} failed)" if failed else "")


def _rows(results: store.Store, workload: str, factor: float) -> Rows:
    by_method = pages.by_method(results, workload, factor=factor)
    names = list(_others().items())
    if by_method:
        key = next(iter(by_method.values()))[0]["key"]
        schedules = None if factor == 1 else _lengths.SCHEDULES
        choice = tune.choice(results, key, schedules)
        if choice is not None:
            by_schedule = [(_SCHEDULES[name], entry["method"]) for name, entry in choice["schedules"].items()]
            names = [(TUNED, choice["best"]), *by_schedule, *names]
    return {name: by_method[method] for name, method in names if method in by_method}


def _target(rows: Rows) -> float:
    """The training loss at which the worst seed of the tuned baseline ends, which the others have to reach."""
    losses = [cell["final"]["train_loss"] for cell in pages.survivors(rows.get(TUNED, []))]
    return max(losses, default=math.nan)


def _steps(cells: list[dict[str, Any]], target: float) -> float:
    """Mean steps to the target; infinite where a seed never gets there."""
    return float(np.mean([math.inf if cell["diverged"] else steps_to(cell, target) for cell in cells]))


def comparable(groups: dict[str, Rows]) -> dict[str, Rows]:
    """The workloads with all methods: a rank among few is none among many.

    Methods that were trained on fewer than half of the workloads are left out, and test functions, which have no noise
    and no test split.
    """
    groups = {name: rows for name, rows in groups.items() if not _is_function(rows)}
    counts = collections.Counter(name for rows in groups.values() for name in _compared(rows))
    seldom = {name for name, number in counts.items() if 2 * number < max(counts.values())}
    groups = {name: {m: cells for m, cells in rows.items() if m not in seldom} for name, rows in groups.items()}
    most = max((len(_compared(rows)) for rows in groups.values()), default=0)
    return {workload: rows for workload, rows in groups.items() if len(_compared(rows)) == most}


def _is_function(rows: Rows) -> bool:
    return next(iter(rows.values()))[0]["workload"]["metric"] == "distance"


def ranked(groups: dict[str, Rows]) -> dict[str, dict[str, float]]:
    """The ranks of each method by the test metric, `{method: {workload: rank}}`, the best mean first."""
    scores: dict[str, dict[str, float]] = {}
    for workload, rows in groups.items():
        for name, cells in _compared(rows).items():
            scores.setdefault(name, {})[workload] = pages.mean_result(cells, cells[0]["workload"]["metric"])
    ranks = pages.ranks(scores)
    return dict(sorted(ranks.items(), key=lambda entry: np.mean(list(entry[1].values()))))


def _ranking(results: store.Store, groups: dict[str, Rows]) -> str:
    if not groups:
        return ""
    lines = [
        [name, float(np.mean(list(entries.values()))), *(entries.get(workload) for workload in groups)]
        for name, entries in ranked(groups).items()
    ]
    table = pages.table_of(results, _cells(groups), ["method", "mean rank", *groups], lines)
    about = (
        "On the workloads that all methods were trained on, test functions left out. Methods that were trained on "
        "fewer than half of the workloads are left out."
    )
    return f"## Ranks by the test metric\n\n{about}\n\n{table}"


def _cells(groups: dict[str, Rows]) -> list[dict[str, Any]]:
    return [cell for rows in groups.values() for cells in rows.values() for cell in cells]


def _profiles(results: store.Store, groups: dict[str, Rows]) -> str:
    losses: dict[str, dict[str, float]] = {}
    steps: dict[str, dict[str, float]] = {}
    for workload, rows in groups.items():
        target = _target(rows)
        compared = _compared(rows)
        ends = {name: pages.mean_result(cells, "loss") for name, cells in compared.items()}
        has_ratios = min(ends.values()) >= 0  # else the zero of the loss is arbitrary
        for name, cells in compared.items():
            if has_ratios:
                losses.setdefault(name, {})[workload] = max(ends[name], _LEAST_LOSS)
            if not math.isnan(target):
                steps.setdefault(name, {})[workload] = _steps(cells, target)
    kinds = [
        (costs, what, np.linspace(1, end, 101))
        for costs, what, end in (
            (losses, "final test loss", 1.5),
            (steps, "steps to where every seed of the tuned baseline ends", 4.0),
        )
        if pages.performance_profile(costs, [1.0])
    ]
    if not kinds:
        return ""
    parts = [f"## Performance profiles\n\n![profiles]({_draw(results, kinds)})", _DRAWN]
    for costs, what, taus in kinds:
        profile = pages.performance_profile(costs, taus)
        shown = [int(np.argmin(abs(taus - tau))) for tau in np.linspace(1, taus[-1], 5)]
        header = ["method", *(f"τ = {taus[i]:.3g}" for i in shown)]
        lines = [[name, *(profile[name][i] for i in shown)] for name in _by_area(profile)]
        table = pages.table_of(results, _cells(groups), header, lines)
        parts.append(f"Share of workloads within a factor τ of the least {what}:\n\n{table}")
    return "\n\n".join(parts)


def _by_area(profile: dict[str, list[float]]) -> list[str]:
    return sorted(profile, key=lambda name: -np.mean(profile[name]))


_DRAWN = (
    "The picture shows GeN, what people use beside it, and the best other method by the mean area under both curves. "
    "Schedule-free AdamW has its warm-up there. The tables have every method. Workloads on which a test loss is "
    "below 0 have no ratios of it, and no part in the profile of the test loss."
)


def _in_profiles(profiles: list[dict[str, list[float]]]) -> dict[str, tuple[str, str]]:
    """The methods to draw, their names and colours: those of `_IN_PROFILES` and the best of the others."""
    shown = {name: style for name, style in _IN_PROFILES.items() if name in profiles[0]}
    areas = {
        name: np.mean([np.mean(profile[name]) for profile in profiles if name in profile])
        for name in profiles[0]
        if name not in shown
    }
    if areas:
        best = max(areas, key=areas.__getitem__)
        shown[best] = (best.replace(":schedule=", ", "), _BEST_OTHER)
    return shown


def _draw(results: store.Store, kinds: list[tuple[dict[str, dict[str, float]], str, np.ndarray]]) -> str:
    """The profiles below each other, a method of one colour in both."""
    path = results.root / "quality_profiles.png"
    profiles = [pages.performance_profile(costs, taus) for costs, _, taus in kinds]
    shown = _in_profiles(profiles)
    with pages.picture(path, rows=len(kinds), size=(5.2, 1.2 + 3.2 * len(kinds))) as axes:
        for axis, profile, (_, what, taus) in zip(axes.flat, profiles, kinds, strict=True):
            for index, (name, (label, colour)) in enumerate(shown.items()):
                if name in profile:
                    # Curves meet: a later one is thinner, and leaves the edges of the earlier to see.
                    width = 5.0 - 0.7 * index
                    axis.step(taus, profile[name], where="post", label=label, lw=width, color=colour)
            axis.set(xlabel=f"τ: factor on the least\n{what}", ylabel="share of workloads", ylim=(-0.03, 1.03))
        axes[0, 0].figure.legend(
            *axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, handlelength=1.5
        )
    return path.name


def _compared(rows: Rows) -> Rows:
    """Without the baselines by schedule: the best of them is there as the tuned baseline."""
    return {name: cells for name, cells in rows.items() if name not in _SCHEDULES.values()}


def _table(results: store.Store, rows: Rows) -> str:
    target = _target(rows)
    lines = []
    for name, cells in rows.items():
        alive = pages.survivors(cells)
        metric = cells[0]["workload"]["metric"]
        reached = [steps_to(cell, target) for cell in alive]
        arrived = list(filter(math.isfinite, reached))
        settings = cells[0]["key"]["method"].partition(":")[2] if "baseline" in name else ""
        lines.append(
            [
                f"{name} ({settings})" if settings else name,
                pages.mean_and_spread([cell["final"]["test"][metric] for cell in alive]),
                pages.mean_and_spread([cell["final"]["test"]["loss"] for cell in alive]),
                pages.mean_and_spread([cell["final"]["train_loss"] for cell in alive]),
                pages.outcome(cells),
                pages.mean_and_spread(arrived, 3),
                f"{len(arrived)} of {len(cells)}",
            ]
        )
    example = next(iter(rows.values()))[0]
    direction = "higher" if example["workload"]["higher_is_better"] else "lower"
    header = ["method", f"test {example['workload']['metric']} ({direction} is better)", "test loss", "training loss"]
    header += ["seeds", "steps to target", "got there"]
    key = example["key"]
    note = (
        f"{key['num_steps']} steps of {key['batch_size']} examples; the target is a training loss of "
        f"{pages.number(target, 4)}, where the tuned baseline's worst seed ends. Mean ± standard deviation over the "
        "seeds that did not fail."
    )
    return f"{note}\n\n{pages.table_of(results, _cells({'': rows}), header, lines)}"


def steps_to(cell: dict[str, Any], target: float) -> float:
    """The step at which the training loss is at most `target`; infinite where it never is.

    The loss at a step is the mean over a twentieth of the run before it, linear between those that are kept.
    """
    before, higher = 0.0, math.inf
    for step, loss in zip(cell["curves"]["step"], cell["curves"]["loss"], strict=True):
        now = math.inf if loss is None else loss
        if now <= target:
            share = 1.0 if math.isinf(higher) else (higher - target) / (higher - now)
            return before + share * (step - before)
        before, higher = float(step), now
    return math.inf
