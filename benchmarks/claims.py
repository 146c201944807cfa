"""What the documents say of the results: each number in them, and how to compute it.

A claim is a sentence with gaps for its numbers, or a table between two marks. `benchmarks.check` compares each with its
file. Whoever writes a number of a result into a document adds a claim here; `python -m benchmarks check --write` puts
the numbers in.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

import gen_optax
from benchmarks import methods, store
from benchmarks import report as pages
from benchmarks.questions import (
    _lengths,
    authors,
    defaults,
    overhead,
    precision,
    quality,
    robustness,
    scale,
    sensitivity,
)

Numbers = Mapping[str, str]


@dataclass(frozen=True)
class Sentence:
    """A sentence, or a part of one, with `{gaps}`.

    Attributes:
      file: where it stands, once the results are there; before that it must not.
      text: the words, however the lines are broken.
      numbers: what is in the gaps by the results of today's rule; None where some of them are missing.
      command: measures anew what the numbers rest on.
    """

    file: str
    text: str
    numbers: Callable[[store.Store], Numbers | None]
    command: str


@dataclass(frozen=True)
class Block:
    """What stands between `<!-- begin NAME -->` and `<!-- end NAME -->`, to the letter.

    Attributes:
      file: where it stands.
      name: in the marks.
      content: by the results of today's rule; None where there are none.
      command: measures it anew.
    """

    file: str
    name: str
    content: Callable[[store.Store], str | None]
    command: str


def _summary(results: store.Store) -> str | None:
    groups = quality.groups_of(results)
    known = any({"gen", "gen_horizon"} & rows.keys() for rows in groups.values())
    return quality.summary(results, groups) if known else None


def _brief(results: store.Store) -> str | None:
    groups = quality.groups_of(results)
    known = any("gen_horizon" in rows for rows in groups.values())
    return quality.brief(results, groups) if known else None


def _precision(which: int) -> Callable[[store.Store], str | None]:
    def content(results: store.Store) -> str | None:
        rows = results.note("precision")
        return None if rows is None else precision.tables(rows[-1])[which]

    return content


def _level(results: store.Store) -> Numbers | None:
    gains = quality.gains_of(quality.groups_of(results))
    if not gains["gen"]:
        return None
    level = {method: sum(gain >= quality.LEVEL for gain in entries.values()) for method, entries in gains.items()}
    return {
        "workloads": str(len(gains["gen"])),
        "horizon": str(level["gen_horizon"]),
        "open_end": str(level["gen"]),
    }


_FAR_FROM_TUNED = 5.0  # per cent


def _beside(results: store.Store) -> Numbers | None:
    rivals = {"untuned": "untuned AdamW, 1e-3", "tuned": quality.TUNED, "prodigy": "prodigy:schedule=cosine"}
    of_all = {
        w: rows for w, rows in quality.groups_of(results).items() if {"gen_horizon", *rivals.values()} <= rows.keys()
    }
    gains = {
        gap: {
            w: gain for w, rows in of_all.items() if (gain := pages.gain(rows["gen_horizon"], rows[name])) is not None
        }
        for gap, name in rivals.items()
    }
    tuned = gains["tuned"]
    if not tuned:
        return None
    errors = {w: pages.gain_error(of_all[w]["gen_horizon"], of_all[w][quality.TUNED]) for w in tuned}
    far = [f"`{w}`" for w in sorted(tuned, key=tuned.__getitem__) if tuned[w] < -_FAR_FROM_TUNED]
    return {
        "workloads": str(len(tuned)),
        **{gap: str(sum(gain > 0 for gain in entries.values())) for gap, entries in gains.items()},
        "clearly": str(sum(gain > 2 * errors[w] for w, gain in tuned.items())),
        "clearly_behind": str(sum(gain < -2 * errors[w] for w, gain in tuned.items())),
        "limit": f"{_FAR_FROM_TUNED:g}",
        "far_behind": pages.listed(far) if far else "none",
    }


def _behind(results: store.Store) -> Numbers | None:
    gains = quality.gains_of(quality.groups_of(results))
    both = {workload: (gains["gen_horizon"][workload], gains["gen"][workload]) for workload in gains["gen"]}
    behind = {workload: pair for workload, pair in both.items() if min(pair) < quality.LEVEL}
    if not behind:
        return None
    ordered = sorted(behind, key=lambda workload: behind[workload][0])
    return {"list": ", ".join("`{}` ({} and {})".format(w, *map(_percent, behind[w])) for w in reversed(ordered))}


def _percent(gain: float) -> str:
    """Two digits are as many as the spread over seeds bears."""
    return pages.number(float(gain) if math.isinf(gain) else float(f"{gain:.2g}"), 3)


def _ranks(results: store.Store) -> Numbers | None:
    groups = quality.groups_of(results)
    if not groups:
        return None
    ranked = quality.ranked(quality.comparable(groups))
    names = {
        "horizon": "gen_horizon",
        "open_end": "gen",
        "prodigy": "prodigy:schedule=cosine",
        "tuned": quality.TUNED,
    }
    if not set(names.values()) <= set(ranked):
        return None
    means = {gap: f"{np.mean(list(ranked[name].values())):.1f}" for gap, name in names.items()}
    return {**means, "methods": str(len(ranked)), "workloads": str(len(ranked["gen"]))}


def _trend(results: store.Store) -> Numbers | None:
    gains = _lengths.gains_of(results)
    uneven = _lengths.least_even(gains)
    if uneven is None:
        return None
    fits = list(_lengths.trends(gains).values())
    if not all(math.isfinite(number) for fit in fits for number in (fit.slope, fit.standard_error)):
        return None
    factors = [factor for entries in gains["gen_horizon"].values() for factor in entries]
    fields = ("horizon", "open_end", "horizon_without", "open_end_without")
    return {
        **{name: f"{fit.slope:+.0f} ± {fit.standard_error:.0f}" for name, fit in zip(fields, fits, strict=True)},
        "uneven": f"`{uneven}`",
        "workloads": str(fits[0].workloads),
        "least": f"{min(factors):g}",
        "most": f"{max(factors):g}",
        "longest": str(sum(max(factors) in entries for entries in gains["gen_horizon"].values())),
    }


_OPEN_END_BEHIND = 3.0  # per cent, at most


def _open_end(results: store.Store) -> Numbers | None:
    pairs = [
        (rows["gen"], rows["gen_horizon"])
        for rows in quality.groups_of(results).values()
        if {"gen", "gen_horizon"} <= rows.keys()
    ]
    gains = [gain for pair in pairs if (gain := pages.gain(*pair)) is not None]
    near = sum(gain >= -_OPEN_END_BEHIND for gain in gains)
    return {"near": str(near), "both": str(len(gains)), "limit": f"{_OPEN_END_BEHIND:g}"} if gains else None


def _goals(results: store.Store) -> str | None:
    """The goals, and how far they are met by the results; None where GeN was trained nowhere."""
    groups = quality.groups_of(results)
    gains = quality.gains_of(groups)
    if not gains["gen"]:
        return None
    level, one, three = quality.LEVEL, -1.0, -3.0
    lines = [
        [
            "with a horizon: level with the tuned schedule on 80 % of the workloads, within 1 % on all",
            _beside_goal(gains["gen_horizon"], most=level, all_of_them=one),
        ],
        [
            "with an open end: within 1 % on 80 % of the workloads, within 3 % on all",
            _beside_goal(gains["gen"], most=one, all_of_them=three),
        ],
        ["no trend with the length of runs beyond two standard errors", _trend_goal(results)],
        [f"within 1 % in runs of at most {_SHORT} steps, with a horizon", _short_goal(groups, gains["gen_horizon"])],
        ["first by mean rank among methods without a rate", _rank_goal(results)],
        ["nothing lost under [stress](results/defaults.md)", _stress_goal(results)],
        ["nothing lost over [given rates](results/sensitivity.md), 1e-8 to 1e2", _given_rates_goal(results)],
        ["at most eight constants, each with [rows](results/defaults.md)", _constants_goal(results)],
    ]
    return pages.table(["goal", "state"], lines)


_NOT_MEASURED = "open: not measured by today's rule"


def _beside_goal(gains: Mapping[str, float], most: float, all_of_them: float) -> str:
    def count(limit: float) -> int:
        return sum(gain >= limit for gain in gains.values())

    met = count(most) >= 0.8 * len(gains) and count(all_of_them) == len(gains)
    worst = min(gains, key=gains.__getitem__)
    return (
        f"{'met' if met else 'missed'}: of {len(gains)} workloads it is level on {count(quality.LEVEL)}, within 1 % on "
        f"{count(-1)} and within 3 % on {count(-3)}; the worst is `{worst}` with {_percent(gains[worst])} %"
    )


def _trend_goal(results: store.Store) -> str:
    numbers = _trend(results)
    if numbers is None:
        return _NOT_MEASURED
    fits = _lengths.trends(_lengths.gains_of(results)).values()
    if any(abs(fit.slope) > 2 * fit.standard_error for fit in fits):
        state = "missed"
    else:
        state = "met" if float(numbers["most"]) >= max(_lengths.FACTORS) else "open"
    return (
        "{state}: per cent for ten times the steps, {horizon} with a horizon and {open_end} with an open end, without "
        "{uneven} {horizon_without} and {open_end_without}; {workloads} workloads from {least} times their steps on, "
        "{longest} of them to {most} times"
    ).format(state=state, **numbers)


_SHORT = 150  # steps


def _short_goal(groups: Mapping[str, quality.Rows], gains: Mapping[str, float]) -> str:
    short = {name: gain for name, gain in gains.items() if groups[name]["gen"][0]["key"]["num_steps"] <= _SHORT}
    if not short:
        return _NOT_MEASURED
    near = sum(gain >= -1 for gain in short.values())
    return (
        f"{'met' if near == len(short) else 'missed'}: within 1 % on {near} of {len(short)} workloads, within 3 % on "
        f"{sum(gain >= -3 for gain in short.values())}"
    )


def _rank_goal(results: store.Store) -> str:
    ranked = quality.ranked(quality.comparable(quality.groups_of(results)))
    tuned_by_hand = {quality.TUNED, *methods.UNTUNED}
    means = {name: float(np.mean(list(of.values()))) for name, of in ranked.items() if name not in tuned_by_hand}
    ours = {"gen": "an open end", "gen_horizon": "a horizon"}
    others = [name for name in means if name not in ours]
    if not others or not set(ours) <= set(means):
        return _NOT_MEASURED
    best, rival = min(ours, key=means.__getitem__), min(others, key=means.__getitem__)
    return (
        f"{'met' if means[best] < means[rival] else 'missed'} on {len(ranked[best])} workloads: {means[best]:.1f} with "
        f"{ours[best]}, beside {means[rival]:.1f} of `{rival}`"
    )


def _stress_goal(results: store.Store) -> str:
    found = [
        defaults.lost_under_stress(results, size).get(method) for size in (4, 8) for method in ("gen_horizon", "gen")
    ]
    known = [entry for entry in found if entry is not None]
    if len(known) < len(found):
        return _NOT_MEASURED
    lost, runs = map(sum, zip(*known, strict=True))
    return f"{'missed' if lost else 'met'}: {lost} of {runs} runs"


def _given_rates_goal(results: store.Store) -> str:
    """The runs that did not end, of those of GeN at its defaults which are given a rate to begin with."""
    found = sensitivity.at_given_rates(results)
    if not found:
        return _NOT_MEASURED
    lost = sum(cell["diverged"] for cell in found)
    workloads = len({cell["key"]["workload"] for cell in found})
    return (
        f"{'missed' if lost else 'met'}: {lost} of {len(found)} runs, workloads: {workloads}; beside no given rate "
        f"the worst is {pages.beside(sensitivity.worst_given_rate(results))}"
    )


def _constants_goal(results: store.Store) -> str:
    constants = {field.name for field in dataclasses.fields(gen_optax.balance())} - {"init_learning_rate"}
    workloads = defaults.ablated(results)
    state = "missed" if len(constants) > 8 else "met" if workloads else "open"
    return f"{state}: {len(constants)} constants, workloads with all their rows: {len(workloads)}"


def _ablation(results: store.Store) -> Numbers | None:
    workloads = defaults.ablated(results)
    return {"list": pages.listed(f"`{workload}`" for workload in workloads)} if workloads else None


_FAR_BEHIND = 1.0  # per cent


def _ablated(results: store.Store) -> Numbers | None:
    """The constants' rows that are far behind the default, in the median over the workloads with all rows."""
    medians = defaults.medians_of_constants(results)
    far = [f"`{setting}`" for setting, median in medians.items() if median < -_FAR_BEHIND]
    return {"list": pages.listed(far) if far else "none", "limit": f"{_FAR_BEHIND:g}"} if medians else None


def _rates_behind(results: store.Store) -> Numbers | None:
    """Where GeN is behind the tuned schedule: its highest rate over the peak of that."""
    groups = quality.groups_of(results)
    gains = quality.gains_of(groups)
    found = {}
    for workload in gains["gen"]:
        rows = groups[workload]
        alive = pages.survivors(rows["gen_horizon"])
        if min(of[workload] for of in gains.values()) < quality.LEVEL and alive:
            peak = methods.parse(rows[quality.TUNED][0]["key"]["method"]).options["learning_rate"]
            found[workload] = np.mean([cell["highest_learning_rate"] for cell in alive]) / peak
    if not found:
        return None
    return {
        "list": pages.listed(f"{ratio:.2g} on `{w}`" for w, ratio in sorted(found.items(), key=lambda entry: entry[1]))
    }


def _stress(results: store.Store) -> Numbers | None:
    found = {}
    for size in (4, 8):
        lost = defaults.lost_under_stress(results, size)
        for method in ("gen_horizon", "gen"):
            if method not in lost:
                return None
            found[f"{method}_{size}"] = "{} of {}".format(*lost[method])
    return found


def _overhead(results: store.Store) -> Numbers | None:
    rows = {row["key"].get("workload"): row for row in results.note("overhead") or []}
    names = overhead.WORKLOADS
    if not set(names) <= set(rows):
        return None
    seen = [rows[name]["probes"]["retrospective"] for name in names]
    copies = [
        (probe["memory_ratio"] - 1) * rows[name]["base_bytes"] / (4 * rows[name]["num_parameters"])
        for name, probe in zip(names, seen, strict=True)
    ]
    return {
        "sizes": pages.listed(f"{rows[name]['num_parameters'] / 1e6:.2g}" for name in names),
        "times": pages.listed(
            "{:.2f} ({:.2f} to {:.2f})".format(probe["ratio"], *probe["quartiles"]) for probe in seen
        ),
        "compiled": pages.listed(f"{probe['compile_ratio']:.1f}" for probe in seen),
        "search": pages.listed(f"{overhead.with_search(rows[name]):.2f}" for name in names),
        "least": f"{min(copies):.1f}",
        "most": f"{max(copies):.1f}",
    }


def _overhead_of_perceptrons(results: store.Store) -> Numbers | None:
    default = gen_optax.balance().every
    rows = [row for row in results.note("overhead") or [] if "parameters" in row["key"]]
    ratios = [row["probes"]["retrospective"]["ratio"] for row in rows if row["key"]["every"] == default]
    return {"few": f"{min(ratios):.2f}", "many": f"{max(ratios):.2f}"} if ratios else None


def _robustness(results: store.Store) -> Numbers | None:
    found = robustness.counts(results)
    if not {*robustness.METHODS, robustness.CONSTANT} <= set(found):
        return None
    return {
        "horizon": found["gen_horizon"][0],
        "open_end": found["gen"][0],
        "constant": found[robustness.CONSTANT][0],
        "near": found["gen_horizon"][2],
        "bases": str(len(methods.BASES)),
        "sizes": str(len(robustness.FACTORS)),
        "precisions": str(len(robustness.PRECISIONS)),
    }


def _far_off(results: store.Store) -> Numbers | None:
    bases = robustness.behind(results)
    return None if bases is None else {"bases": bases}


def _authors(results: store.Store) -> Numbers | None:
    difference = authors.by_the_same_rule(results.note("authors") or [])
    return None if difference is None else {"difference": difference}


def _precision_at_points(results: store.Store) -> Numbers | None:
    rows = results.note("precision")
    if rows is None:
        return None
    seen = {(row["arithmetic"], row["probe"]): row for row in rows[-1]["points"]}
    coarse = "bfloat16 throughout, loss too"

    def of(probe: str, field: str, which: Callable[[str], bool]) -> list[float]:
        return [row[field] for (arithmetic, name), row in seen.items() if name == probe and which(arithmetic)]

    single = seen[coarse, "finite_difference"]
    abstained = single["points"] - single["status"].get("ACCEPTED", 0)
    return {
        "path": f"{max(of('retrospective', 'median_error', lambda name: name != coarse)):.1%}".replace("%", " %"),
        "path_coarse": f"{seen[coarse, 'retrospective']['median_error']:.1%}".replace("%", " %"),
        "exact": f"{max(of('exact', 'error_90', lambda name: True)):.0%}".replace("%", " %"),
        "single": f"{min(of('finite_difference', 'median_error', lambda name: 'bfloat16' in name)):.0%}".replace(
            "%", " %"
        ),
        "abstained": f"{abstained / single['points']:.0%}".replace("%", " %"),
        "single_coarse": f"{single['median_error']:.0%}".replace("%", " %"),
    }


def _precision_over_runs(results: store.Store) -> Numbers | None:
    rows = results.note("precision")
    if rows is None:
        return None
    seen = {(row["arithmetic"], row["probe"]): row for row in rows[-1]["runs"]}
    nudged = [np.median(seen[precision.NUDGED, probe]["rate_relative_to_float32"]) for probe in precision.PROBES]
    fine, coarse = seen["float32", "retrospective"], seen["bfloat16 throughout, loss too", "retrospective"]
    return {
        "least": f"{min(nudged):.2f}",
        "most": f"{max(nudged):.2f}",
        "single_least": f"{min(coarse['rate_relative_to_float32']):.2f}",
        "single_most": f"{max(coarse['rate_relative_to_float32']):.2f}",
        "loss": f"{np.mean(coarse['last_losses']):.3f}",
        "fine_loss": f"{np.mean(fine['last_losses']):.3f}",
    }


def _on_pods(results: store.Store) -> str | None:
    """Per device, with few devices and with many: the default probe beside no GeN."""
    rows = {(row["key"]["devices"], row["key"]["probe"]): row for row in results.note("scale") or []}
    header = ["devices", "state without GeN", "with GeN", "memory of the step", "sent by a step", "by a probe"]
    lines = []
    for devices in sorted({devices for devices, _ in rows} & {8, 64}):
        base, ours = rows.get((devices, "base")), rows.get((devices, "retrospective"))
        if base and ours:
            sent, more = scale.sent(base), scale.sent(ours)
            lines.append(
                [
                    str(devices),
                    *(f"{pages.number(row['arguments_bytes'] / 2**30)} GiB" for row in (base, ours)),
                    f"{ours['memory_bytes'] / base['memory_bytes']:.2f} times",
                    *(f"{pages.number(size / 2**30)} GiB" for size in (sent, more - sent)),
                ]
            )
    return pages.table(header, lines) if lines else None


def _a_probe_on_pods(results: store.Store) -> Numbers | None:
    """What the default probe adds to a step on the most devices: bytes that are sent, and operations."""
    rows = {(row["key"]["devices"], row["key"]["probe"]): row for row in results.note("scale") or []}
    base, ours = rows.get((64, "base")), rows.get((64, "retrospective"))
    if not base or not ours:
        return None
    before, after = scale.sent(base), scale.sent(ours)
    operations = 100 * (ours["flops"] / base["flops"] - 1)
    return {
        "gathered": pages.number((after - before) / 2 / 2**30),
        "sent": pages.number(100 * (after - before) / before / 16, 2),
        "operations": pages.number(operations, 2),
        "spread": pages.number(operations / 16, 2),
    }


_QUALITY = "python -m benchmarks question quality"


def _cost_by_count(_: store.Store) -> Numbers:
    """What the code says of forward passes, two a probe."""
    default = gen_optax.balance()
    return {
        "first": str(default.num_start_rates),
        "search": str(default.search_probes),
        "every": str(default.every),
    }


_COUNTED = "python -m benchmarks check --write"

CLAIMS: tuple[Sentence | Block, ...] = (
    Block("README.md", "readme", _brief, _QUALITY),
    Sentence(
        "README.md",
        "GeN with `num_steps` is ahead of untuned AdamW on {untuned} workloads, of the tuned schedule on {tuned} (on "
        "{clearly} by more than two standard errors), and of Prodigy with a cosine decay on {prodigy}, of the "
        "{workloads} on which all of them were trained. It is behind the schedule by more than two standard errors on "
        "{clearly_behind}, and by more than {limit} % on {far_behind}.",
        _beside,
        _QUALITY,
    ),
    Sentence(
        "README.md",
        "GeN costs up to {first} forward passes at the first step, two at each of the next {search}, and two at every "
        "{every}th from there.",
        _cost_by_count,
        _COUNTED,
    ),
    Sentence(
        "benchmarks/README.md",
        "By count the cost is two forward passes at every {every}th step, one copy of the parameters and at most 512 "
        "numbers for each array of them. The search for a rate adds {first} forward passes and {search} probes, once; "
        "the average of an open end is another copy.",
        _cost_by_count,
        _COUNTED,
    ),
    Block("benchmarks/README.md", "quality", _summary, _QUALITY),
    Sentence(
        "benchmarks/README.md",
        "On {horizon} of {workloads} workloads with a horizon, and on {open_end} with an open end, GeN is ahead of the "
        "tuned schedule or at most 0.1 % behind; Beale's and Rosenbrock's functions are not counted.",
        _level,
        _QUALITY,
    ),
    Sentence(
        "benchmarks/README.md",
        "The others, with the gain in per cent with a horizon and with an open end, are {list}.",
        _behind,
        _QUALITY,
    ),
    Sentence(
        "benchmarks/README.md",
        "On the {workloads} workloads on which all {methods} methods were trained, the mean rank of GeN is {horizon} "
        "with a horizon and {open_end} with an open end; that of Prodigy with a cosine decay is {prodigy}, and that of "
        "the tuned schedule {tuned}.",
        _ranks,
        _QUALITY,
    ),
    Sentence(
        "benchmarks/README.md",
        "{workloads} workloads were trained at {least} to {most} times their length, {longest} of them at the "
        "longest. The rival of a run with a horizon is the better of a constant rate and a linear decay, that of an "
        "open end the constant rate, tuned again for each length. Ten times the steps change the gain by {horizon} "
        "per cent with a horizon and by {open_end} with an open end; without {uneven}, whose gains lie furthest "
        "apart, by {horizon_without} and {open_end_without}.",
        _trend,
        _QUALITY,
    ),
    Sentence(
        "benchmarks/README.md",
        "Of the runs of `digits_mlp` with 4 examples a step {gen_horizon_4} are lost with a horizon and {gen_4} with "
        "an open end, of those with 8 examples {gen_horizon_8} and {gen_8}.",
        _stress,
        "python -m benchmarks question defaults",
    ),
    Sentence(
        "benchmarks/README.md",
        "On workloads of {sizes} million parameters a step takes {times} times as long as that of the base "
        "optimizer, median and quartiles, and {search} times with the search for a rate in their short runs. It "
        "compiles {compiled} times as long, and needs the memory of {least} to {most} more copies of the parameters, "
        "one of which is the average of an open end.",
        _overhead,
        "python -m benchmarks question overhead",
    ),
    Sentence(
        "benchmarks/README.md",
        "[Perceptrons](results/overhead.md), which do little with each parameter, take {few} to {many} times as long.",
        _overhead_of_perceptrons,
        "python -m benchmarks question overhead",
    ),
    Sentence(
        "benchmarks/README.md",
        "{bases} base optimizers were trained on digits with {sizes} batch sizes in {precisions} precisions. All "
        "seeds train in {horizon} combinations with a horizon, and in {open_end} with an open end; with the constant "
        "rate of the best validation accuracy of each, in {constant}. With a horizon the mean test loss is within "
        "1.2 times that of the constant rate in {near}.",
        _robustness,
        "python -m benchmarks question robustness",
    ),
    Sentence(
        "docs/when-it-does-not-work.md",
        "On digits these bases end at a multiple of the test loss of the constant rate that has the best accuracy: "
        "{bases}.",
        _far_off,
        "python -m benchmarks question robustness",
    ),
    Sentence(
        "docs/how-it-works.md",
        "With `clamp=2.0` its learning rates on plain SGD are those of the authors' PyTorch package, gen-optim, to a "
        "relative difference of {difference}, where both do the same on the same batches.",
        _authors,
        "python -m benchmarks question authors",
    ),
    Sentence(
        "docs/faq.md",
        "Measured on CPUs, a step of three networks takes {times} times as long as that of the base optimizer, median "
        "and quartiles.",
        _overhead,
        "python -m benchmarks question overhead",
    ),
    Block("docs/guides/precision.md", "points", _precision(0), "python -m benchmarks question precision"),
    Block("docs/guides/precision.md", "runs", _precision(1), "python -m benchmarks question precision"),
    Sentence(
        "docs/guides/precision.md",
        "half of its answers are within {path} of float32's. Where the mean of the losses is in bfloat16 as well, half "
        "are within {path_coarse}. `exact()` differences nothing and is right to {exact} at nine points of ten. "
        "`finite_difference()` sees a single step: in bfloat16 half of its answers are off by {single} or more, either "
        "way. Where the mean is in bfloat16 it abstains at {abstained} of the points, and half of the others are off "
        "by {single_coarse} or more.",
        _precision_at_points,
        "python -m benchmarks question precision",
    ),
    Sentence(
        "docs/guides/precision.md",
        "Weights that are nudged alone change the median rate by factors of {least} to {most}. With the mean of the "
        "losses in bfloat16 the default probe finds {single_least} to {single_most} times the rate of float32 in "
        "single runs. The mean of the last losses is then {loss}, in float32 {fine_loss}.",
        _precision_over_runs,
        "python -m benchmarks question precision",
    ),
    Sentence(
        "benchmarks/STUDY.md",
        "On {near} of {both} workloads the open end is ahead of the horizon or at most {limit} % behind.",
        _open_end,
        _QUALITY,
    ),
    Sentence(
        "benchmarks/STUDY.md",
        "With today's rule it has all of its rows on {list}.",
        _ablation,
        "python -m benchmarks question defaults",
    ),
    Sentence(
        "benchmarks/STUDY.md",
        "These rows end more than {limit} % behind the default, in the median over workloads: {list}.",
        _ablated,
        "python -m benchmarks question defaults",
    ),
    Sentence(
        "benchmarks/STUDY.md",
        "Where GeN is behind, its highest rate over the tuned schedule's peak is {list}.",
        _rates_behind,
        _QUALITY,
    ),
    Block("benchmarks/STUDY.md", "goals", _goals, _QUALITY),
    Block("docs/guides/pods.md", "pods", _on_pods, "python -m benchmarks question scale"),
    Sentence(
        "docs/guides/pods.md",
        "A probe gathers the weights for two forward passes, {gathered} GiB each, and sends some scalars. At every "
        "16th step that is {sent} % of what a step sends.",
        _a_probe_on_pods,
        "python -m benchmarks question scale",
    ),
    Sentence(
        "docs/guides/pods.md",
        "**Arithmetic.** {operations} % of a step, so {spread} % at every 16th.",
        _a_probe_on_pods,
        "python -m benchmarks question scale",
    ),
)
