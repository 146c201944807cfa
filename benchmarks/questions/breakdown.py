"""Where the quadratic model breaks: does b eta - A eta^2 / 2 predict what a step does to the loss?

At some steps of a training run the step as applied, `d`, is judged on the batch it was computed from and on one that
it has not seen: exact derivatives along `d` give the predicted decrease, two losses the real one. Where float32 cannot
tell the two losses apart the step says nothing and is left out of the errors. The workloads include a deep residual
network without normalisation.
"""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gen_optax
from benchmarks import methods, runner, store
from benchmarks import report as pages
from benchmarks.questions import Study
from benchmarks.workload import Workload

METHODS = ("gen_horizon", "gen_paper_horizon")
_NOTE = "breakdown"
_STEPS = 60  # looked at, evenly spread over a run
_ROUNDING = 8 * float(np.finfo(np.float32).eps)


def run(study: Study) -> None:
    """Looks at every workload with every method."""
    from benchmarks.workloads import WORKLOADS

    chosen = study.chosen(WORKLOADS)
    with runner.progress_bar() as progress:
        for workload in progress.track(chosen, description="breakdown"):
            for method in METHODS[:1] if study.tiny else METHODS:
                for seed in study.seeds:
                    key = runner.cell_key(workload, method, seed)
                    study.measure(_NOTE, key, lambda key=key, workload=workload: measure(key, workload))


def report(results: store.Store) -> str | None:
    """Errors of the prediction and shares of steps that help, early, in the middle and late."""
    rows = [row for row in results.note(_NOTE) or [] if row["key"]["method"] in METHODS]
    if not rows:
        return None
    groups = pages.grouped(rows, lambda row: (row["key"]["workload"], row["key"]["method"]))
    lines, statuses = [], []
    for (workload, method), group in sorted(groups.items()):
        for third, name in enumerate(("early", "middle", "late")):
            seen = [_part(row, third) for row in group]
            own, other = ([_error(part[batch]) for part in seen] for batch in ("own", "held_out"))
            lines.append(
                [
                    workload,
                    method,
                    name,
                    pages.mean_and_spread(own, 2),
                    pages.mean_and_spread(other, 2),
                    pages.mean_and_spread([_share_that_helped(part["own"]) for part in seen], 2),
                    pages.mean_and_spread([_share_that_helped(part["held_out"]) for part in seen], 2),
                    pages.mean_and_spread([_share_of_negative_curvature(part["own"]) for part in seen], 2),
                    str(len(group)),
                ]
            )
        counts: collections.Counter[str] = collections.Counter()
        for row in group:
            counts.update(row["statuses"])
        total = max(1, sum(counts.values()))
        statuses.append([workload, method, total, *(counts[name] / total for name in _STATUSES)])
    header = ["workload", "method", "phase", "error, own batch", "error, held-out batch", "lowers the loss, own"]
    header += ["lowers the loss, held-out", "A < 0, own", "seeds"]
    drawn = [(workload, group) for (workload, method), group in sorted(groups.items()) if method == METHODS[0]]
    parts = [
        *([pages.opening(f"![breakdown]({_draw(results, drawn)})", _in_words(drawn))] if drawn else []),
        "The error is the median of |real - predicted| / |predicted|; the last three columns are shares of the steps.",
        pages.table_of(results, rows, header, lines),
        "## What became of the probes, as shares",
        pages.table_of(
            results, rows, ["workload", "method", "probes", *(name.replace("_", " ") for name in _STATUSES)], statuses
        ),
    ]
    return "\n\n".join(parts)


_CLOSE = 0.5  # an error of less than half of what was predicted


def _in_words(shown: list[tuple[str, list[dict[str, Any]]]]) -> list[str]:
    """Where the prediction holds, where it is worst, and how many steps help."""
    errors: dict[str, dict[str, float]] = {"own": {}, "held_out": {}}
    for workload, group in shown:
        for batch, of_workloads in errors.items():
            known = [error for row in group if (error := _error(_whole(row)[batch])) is not None]
            if known:
                of_workloads[workload] = float(np.mean(known))
    own, other = errors["own"], errors["held_out"]
    sentences = []
    if own and other:
        close, elsewhere = (sum(error < _CLOSE for error in of.values()) for of in (own, other))
        worst = max(other, key=other.__getitem__)
        sentences = [
            "On the batch that a step was computed from, the median prediction is off by less than half on "
            f"{close} of {len(own)} workloads.",
            f"On a batch that the step has not seen, it is so on {elsewhere} of {len(other)}.",
            f"There it is worst on `{worst}`: off by {pages.number(other[worst], 2)} times what was predicted.",
        ]
    rows = [row for _, group in shown for row in group]
    helped = {
        name: np.concatenate([_part(row, third)["held_out"]["decrease"] > 0 for row in rows])
        for name, third in (("early", 0), ("late", 2))
    }
    if all(map(len, helped.values())):
        early, late = (100 * float(np.mean(steps)) for steps in helped.values())
        sentences.append(
            f"Early in a run {early:.0f} % of the steps lower the loss of an unseen batch, late in it {late:.0f} %."
        )
    return sentences


_STATUSES = [status.name.lower() for status in gen_optax.ProbeStatus if status != gen_optax.ProbeStatus.NONE]


def measure(key: dict[str, Any], workload: Workload) -> dict[str, Any]:
    """One training run, with the steps that are looked at and what became of its probes."""
    num_steps, seed = key["num_steps"], key["seed"]
    method = methods.build(methods.parse(key["method"]), workload, num_steps)
    init_key, step_key = jax.random.split(jax.random.key(seed))
    state, step = runner.start(workload, method, *workload.init(init_key))
    batches = runner.batches_for(workload, method, seed, key["batch_size"])
    held_out = workload.batches(seed + 2_000_003, key["batch_size"])
    loss_fn = runner.loss_of(workload)

    @jax.jit
    def judge(before, after, batch, key):
        """value, slope and curvature along the step, and the loss after it; the dropout is that of the step."""
        key = jax.random.fold_in(key, before.step)

        def loss(p):
            return loss_fn(p, before, batch, key)[0]

        moved = jax.tree.map(jnp.subtract, after, before.params)
        return *gen_optax.directional_derivatives(loss, before.params, moved), loss(after)

    looked_at = set(np.linspace(0, num_steps - 1, min(_STEPS, num_steps)).astype(int).tolist())
    seen: dict[str, list[Any]] = {"own": [], "held_out": []}
    steps, probes = [], []
    for index in range(num_steps):
        batch, others = next(batches)
        before = jax.tree.map(jnp.copy, state) if index in looked_at else None
        state, scalars = step(state, batch, others, step_key)
        probes.append((scalars["num_probes"], scalars["status"]))
        if before is not None:
            steps.append(index)
            for name, judged in (("own", batch), ("held_out", next(held_out))):
                value, slope, curvature, after = map(float, judge(before, state.params, judged, step_key))
                seen[name].append(
                    {
                        "value": value,
                        "slope": slope,
                        "curvature": curvature,
                        "decrease": value - after,
                    }
                )
            if not np.isfinite(value):
                break
    counts = np.array([int(count) for count, _ in probes])
    at_probe = np.diff(counts, prepend=0) > 0
    named = (
        gen_optax.ProbeStatus(int(status)).name.lower() for _, status in np.array(jax.device_get(probes))[at_probe]
    )
    columns = {name: {field: [row[field] for row in rows] for field in rows[0]} for name, rows in seen.items()}
    return {"steps": steps, "statuses": dict(collections.Counter(named)), **columns}


def _part(row, third):
    """The steps of a third of the run: arrays by name, NaN where a number was not finite."""
    progress = np.array(row["steps"]) / row["key"]["num_steps"]
    return _chosen(row, (progress >= third / 3) & (progress < (third + 1) / 3))


def _whole(row):
    """All steps of the run, in the same way."""
    return _chosen(row, slice(None))


def _chosen(row, chosen):
    return {
        batch: {name: np.array(values, float)[chosen] for name, values in row[batch].items()}
        for batch in ("own", "held_out")
    }


def _predicted(seen):
    return seen["slope"] - seen["curvature"] / 2


def _error(seen):
    predicted = _predicted(seen)
    telling = np.abs(predicted) > _ROUNDING * np.abs(seen["value"])
    if not telling.any():
        return None
    return float(np.median(np.abs(seen["decrease"] - predicted)[telling] / np.abs(predicted)[telling]))


def _share_that_helped(seen):
    return float(np.mean(seen["decrease"] > 0)) if len(seen["value"]) else None


def _share_of_negative_curvature(seen):
    return float(np.mean(seen["curvature"] < 0)) if len(seen["value"]) else None


def _draw(results, shown):
    """Real against predicted decrease of every step looked at, by workload."""
    path = results.root / "breakdown.png"
    columns = min(3, len(shown))
    with pages.picture(path, columns, -(-len(shown) // columns)) as axes:
        for axis in axes.flat[len(shown) :]:
            axis.remove()
        for axis, (workload, group) in zip(axes.flat, shown, strict=False):
            ends = []
            for index, (batch, label) in enumerate((("held_out", "held-out batch"), ("own", "own batch"))):
                columns_of = {
                    name: np.concatenate([np.array(r[batch][name], float) for r in group]) for name in _FIELDS
                }
                scale = np.abs(columns_of["value"])
                predicted, real = _predicted(columns_of) / scale, columns_of["decrease"] / scale
                axis.plot(predicted, real, ".", ms=4, alpha=0.6, color=pages.COLOURS[1 - index], label=label)
                ends += [np.nanmax(np.abs(predicted)), np.nanmax(np.abs(real))]
            end = min(max(ends), 10)
            axis.plot([-end, end], [-end, end], color="#8a8a8a", lw=0.8)
            axis.set_xscale("symlog", linthresh=1e-4)
            axis.set_yscale("symlog", linthresh=1e-4)
            axis.set(xlabel="predicted decrease / loss", ylabel="real decrease / loss", title=workload)
            axis.legend(frameon=False, fontsize=8)
    return path.name


_FIELDS = ("value", "slope", "curvature", "decrease")
