"""Trajectories: where does each method go on Beale's and Rosenbrock's functions?

The base optimizer is SGD with momentum. Without noise the greedy step is the one that the theory is about; the paths
say what else happens.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import methods, runner, store
from benchmarks import report as pages
from benchmarks.questions import Study

FUNCTIONS = {"beale": ((-0.5, 4.5), (-1.5, 1.5)), "rosenbrock": ((-2.0, 2.0), (-1.0, 3.0))}  # and what to draw of them
METHODS = (
    "gen",
    "gen_horizon",
    "gen_paper",
    "baseline:learning_rate=0.001",
    "backtracking",
)
_NOTE = "trajectories"
_POINTS = 200


def run(study: Study) -> None:
    """Every method on both functions, from one start."""
    for workload in study.chosen(FUNCTIONS):
        for method in METHODS[:2] if study.tiny else METHODS:
            key = runner.cell_key(workload, method, seed=0)
            study.measure(_NOTE, key, functools.partial(follow, key, workload))


def report(results: store.Store) -> str | None:
    """Paths over the level lines, and where they end."""
    rows = [row for row in results.note(_NOTE) or [] if row["key"]["method"] in METHODS]
    if not rows:
        return None
    lines = [
        [
            row["key"]["workload"],
            row["key"]["method"],
            row["key"]["num_steps"],
            row["loss"][-1],
            row["first_below_1e-3"],
            "({}, {})".format(*(pages.number(x, 4) for x in row["points"][-1])),
        ]
        for row in rows
    ]
    header = ["function", "method", "steps", "loss at the end", "first step below 1e-3", "end"]
    opening = pages.opening(f"![trajectories]({_draw(results, rows)})", _in_words(rows))
    return f"{opening}\n\n{pages.table_of(results, rows, header, lines)}"


def _in_words(rows):
    """Who is first below a loss of 1e-3 on each function, when the default is, and who never gets there."""
    sentences, never = [], []
    for name, group in pages.grouped(rows, lambda row: row["key"]["workload"]).items():
        arrived = {row["key"]["method"]: row["first_below_1e-3"] for row in group}
        never += [f"`{method}` on `{name}`" for method, step in arrived.items() if step is None]
        known = {method: step for method, step in arrived.items() if step is not None}
        if known:
            first = min(known, key=known.__getitem__)
            ours = (
                f"; `{METHODS[0]}` needs {known[METHODS[0]]:,}" if METHODS[0] in known and first != METHODS[0] else ""
            )
            sentences.append(
                f"On `{name}` `{first}` is first below a loss of 1e-3, after {known[first]:,} steps{ours}."
            )
    if never:
        sentences.append(f"Never below it are {pages.listed(never)}.")
    return sentences


def follow(key, workload):
    """The path of one run: points and losses, evenly thinned."""
    num_steps = key["num_steps"]
    method = methods.build(methods.parse(key["method"]), workload, num_steps)
    params, model_state = workload.init(jax.random.key(key["seed"]))
    state, step = runner.start(workload, method, params, model_state)
    batch = next(workload.batches(0, workload.batch_size))
    loss = jax.jit(lambda p: workload.loss_fn(p, model_state, batch, jax.random.key(0))[0])
    points, losses = [], []
    for _ in range(num_steps):
        points.append(np.asarray(state.params["point"]))
        losses.append(float(loss(state.params)))
        state, _ = step(state, batch, {}, jax.random.key(0))
    points.append(np.asarray(state.params["point"]))
    losses.append(float(loss(state.params)))
    shown = np.unique(np.linspace(0, num_steps, min(num_steps, _POINTS) + 1).astype(int))
    below = np.flatnonzero(np.array(losses) < 1e-3)
    return {
        "points": np.array(points)[shown].tolist(),
        "loss": np.array(losses)[shown].tolist(),
        "step": shown.tolist(),
        "first_below_1e-3": int(below[0]) if len(below) else None,
    }


def _height(workload, point):
    return workload.loss_fn({"point": point}, {}, {}, None)[0]


def _draw(results, rows):
    from benchmarks.workloads import get

    path = results.root / "trajectories.png"
    groups = pages.grouped(rows, lambda row: row["key"]["workload"])
    with pages.picture(path, columns=2, rows=len(groups)) as axes:
        for (name, group), (plane, curves) in zip(groups.items(), axes, strict=True):
            workload = get(name)
            (left, right), (bottom, top) = FUNCTIONS[name]
            x, y = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
            grid = jnp.stack([x.ravel(), y.ravel()], 1)
            z = jax.vmap(functools.partial(_height, workload))(grid)
            plane.contour(x, y, np.log10(np.reshape(z, x.shape) + 1e-3), 12, colors="#cccccc", linewidths=0.7)
            for index, row in enumerate(group):
                points = np.array(row["points"], float)
                plane.plot(*points.T, lw=1.3, label=row["key"]["method"], **pages.style(index))
                curves.plot(row["step"], np.array(row["loss"], float), **pages.style(index))
            plane.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y", title=name)
            plane.legend(frameon=False, fontsize=7)
            curves.set(xlabel="step", ylabel="loss", yscale="log", title=name)
    return path.name
