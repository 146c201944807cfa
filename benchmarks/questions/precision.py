"""Precision: what does each probe see in float16 and bfloat16?

On a small network on real digits, in two tables. At one point: along a float32 run every third step is probed in each
arithmetic, and the minimiser is compared with the one that the same probe finds in float32 at the same parameters,
steps and batch. Over a run: the learning rate relative to that of the float32 run, which the probe along the path finds
from nothing; the others, which judge a step on its own batch, serve Algorithm 1.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import gen_optax
from benchmarks import report as pages
from benchmarks import rule, store
from benchmarks.questions import Study
from gen_optax import ProbeStatus
from gen_optax.plot import BLUE, GREEN, GREY, ORANGE

SIZES, BATCH_SIZE, NUM_STEPS, STRIDE, WARM_UP = (64, 128, 128, 10), 64, 300, 3, 50
STEPS_BEHIND = gen_optax.Path().window  # that the probe along the path judges, as in a run


class Arithmetic(NamedTuple):
    """Types of the stored weights, of the activations and of the loss."""

    params: Any
    compute: Any
    loss: Any


FLOAT32 = Arithmetic(jnp.float32, jnp.float32, jnp.float32)
ARITHMETICS = {
    "float32": FLOAT32,
    "float32 weights, bfloat16 compute": Arithmetic(jnp.float32, jnp.bfloat16, jnp.float32),
    "bfloat16 weights and compute": Arithmetic(jnp.bfloat16, jnp.bfloat16, jnp.float32),
    "bfloat16 throughout, loss too": Arithmetic(jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
    "float32 weights, float16 compute": Arithmetic(jnp.float32, jnp.float16, jnp.float32),
}
PROBES: dict[str, Callable[[], Any]] = {
    "retrospective": gen_optax.retrospective,
    "exact": gen_optax.exact,
    "finite_difference": gen_optax.finite_difference,
}
_NOTE, _SEEDS = "precision", 8
NUDGED = "float32, weights nudged by 1e-4"


def run(study: Study) -> None:
    """Measures both tables."""
    seeds = 1 if study.tiny else _SEEDS
    key = {"seeds": seeds, "batch_size": BATCH_SIZE, "num_steps": NUM_STEPS, "on_the_own_batch": "algorithm_1"}
    study.measure(_NOTE, key, lambda: {"points": points(seeds), "runs": runs(seeds)})


def report(results: store.Store) -> str | None:
    """A picture of the first table, what it shows, and both tables."""
    rows = results.note(_NOTE)
    if rows is None:
        return None
    opening = pages.opening(f"![errors of the probes]({_draw(results, rows[-1])})", _in_words(rows[-1]))
    return "\n\n".join([opening, *(f"{table}\n\n{rule.describe(results, rows[-1:])}" for table in tables(rows[-1]))])


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images of shape `(1797, 64)`, float32 in [0, 1], and their labels."""
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def init(seed: int, dtype: Any = jnp.float32) -> Any:
    """A multilayer perceptron with rectified linear units."""
    keys = jax.random.split(jax.random.key(seed), len(SIZES) - 1)
    return [
        {"w": (jax.random.normal(key, (m, n)) * np.sqrt(2 / m)).astype(dtype), "b": jnp.zeros(n, dtype)}
        for key, m, n in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]


def loss_fn(params: Any, indices: jax.Array, arithmetic: Arithmetic = FLOAT32) -> jax.Array:
    """Mean cross-entropy of the digits `indices`."""
    x, y = map(jnp.asarray, digits())
    h = x[indices].astype(arithmetic.compute)
    for i, layer in enumerate(params):
        h = h if i == 0 else jax.nn.relu(h)
        h = h @ layer["w"].astype(arithmetic.compute) + layer["b"].astype(arithmetic.compute)
    logits = h.astype(arithmetic.loss)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y[indices]).mean()


def batches(seeds: Sequence[int], num_steps: int) -> jax.Array:
    """Indices of the batch of each step, shape `(seeds, steps, batch)`."""
    shape = num_steps, BATCH_SIZE
    return jnp.asarray([np.random.default_rng(seed).integers(0, len(digits()[1]), shape) for seed in seeds])


def base() -> optax.GradientTransformation:
    """The base optimizer; its epsilon is one that float16 can hold."""
    return optax.adamw(1.0, eps=1e-6)


class Trace(NamedTuple):
    """One entry per seed and step."""

    params: Any  # before the step
    direction: Any  # what the base optimizer proposed
    metrics: dict[str, jax.Array]


def train(
    seeds: Sequence[int],
    arithmetic: Arithmetic,
    probe: Any,
    num_steps: int = NUM_STEPS,
    loss_scale: float = 1.0,
    nudge: float = 0.0,
) -> Trace:
    """Training runs with the default decay; `nudge`: relative change of the first weights.

    From a cold start where the probe is independent of the gradient's batch, else under Algorithm 1.
    """
    controller = None if probe.direction.independent else gen_optax.algorithm_1()
    tx = gen_optax.gen(base(), controller=controller, probe=probe, num_steps=NUM_STEPS)

    def step(carry, indices):
        params, state = carry

        def scaled(params):
            return loss_scale * loss_fn(params, indices, arithmetic)

        value, grads = jax.value_and_grad(scaled)(params)
        value, grads = value / loss_scale, jax.tree.map(lambda g: g / loss_scale, grads)
        value_fn = functools.partial(loss_fn, indices=indices, arithmetic=arithmetic)
        updates, new_state = tx.update(grads, state, params, value=value, value_fn=value_fn)
        direction, _ = base().update(grads, state[0], params)
        metrics = gen_optax.metrics(new_state) | {"loss": value}
        return (optax.apply_updates(params, updates), new_state), Trace(params, direction, metrics)

    def run(start):
        params, indices = start
        return jax.lax.scan(step, (params, tx.init(params)), indices)[1]

    params = jax.tree.map(lambda *x: jnp.stack(x), *(init(seed, arithmetic.params) for seed in seeds))
    params = jax.tree.map(lambda x: x * jnp.asarray(1 + nudge, x.dtype), params)
    return jax.jit(lambda starts: jax.lax.map(run, starts))((params, batches(seeds, num_steps)))


def probe_once(probe: Any, arithmetic: Arithmetic, point: dict[str, Any], reference: bool = False) -> Any:
    """The `GenInfo` of one probe at a point, at the weights of `arithmetic`; with `reference`, computed in float32."""

    def cast(tree, dtype):
        return jax.tree.map(lambda x: x.astype(dtype), tree)

    before = cast(point["before"], arithmetic.params)
    direction = cast(point["direction"], arithmetic.params)
    controller = gen_optax.algorithm_1(init_learning_rate=point["learning_rate"])
    tx = gen_optax.scale_by_gen(controller=controller, probe=probe, every=1)
    after = cast(point["after"], arithmetic.params)
    if reference:
        before, after, direction = (cast(tree, jnp.float32) for tree in (before, after, direction))
        arithmetic = FLOAT32

    def update(state, params, indices):
        value_fn = functools.partial(loss_fn, indices=indices, arithmetic=arithmetic)
        value, grad = jax.value_and_grad(value_fn)(params)
        return tx.update(direction, state, params, value=value, grad=grad, value_fn=value_fn)[1]

    state = update(tx.init(before), before, point["own_batch"])
    if isinstance(probe.direction, gen_optax.Path):
        state = update(state, after, point["batch_after"])
    return state.info


def points_of(seeds: Sequence[int], stride: int = STRIDE) -> dict[str, Any]:
    """Every so many steps of float32 runs, once a learning rate is known; and where the next steps lead from there."""
    trace, indices = train(seeds, FLOAT32, gen_optax.retrospective()), batches(seeds, NUM_STEPS)
    at = np.arange(3, NUM_STEPS - STEPS_BEHIND, stride)
    points = {
        "before": jax.tree.map(lambda x: x[:, at], trace.params),
        "direction": jax.tree.map(lambda x: x[:, at], trace.direction),
        "learning_rate": trace.metrics["applied_learning_rate"][:, at],
        "own_batch": indices[:, at],
        "after": jax.tree.map(lambda x: x[:, at + STEPS_BEHIND], trace.params),
        "batch_after": indices[:, at + STEPS_BEHIND],
    }
    points = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), points)
    taken = np.asarray(points["learning_rate"]) > 0  # not those where steps were taken back
    return jax.tree.map(lambda x: x[taken], points)


def points(seeds: int) -> list[dict[str, Any]]:
    """The first table: one dict per arithmetic and probe."""
    rows = []
    trajectory = points_of(range(seeds))
    for arithmetic_name, arithmetic in list(ARITHMETICS.items())[1:]:
        for name, make in PROBES.items():
            reference = infos(make(), arithmetic, trajectory, reference=True)
            rows.append(compare(arithmetic_name, name, infos(make(), arithmetic, trajectory), reference))
    return rows


def infos(probe: Any, arithmetic: Arithmetic, trajectory: Any, reference: bool = False) -> dict[str, np.ndarray]:
    """Minimiser and status at every point."""
    measure = jax.jit(lambda points: jax.lax.map(lambda p: probe_once(probe, arithmetic, p, reference), points))
    info = measure(trajectory)
    return {"minimizer": np.asarray(info.optimal_learning_rate), "status": np.asarray(info.status)}


def compare(
    arithmetic: str, probe: str, found: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Errors of the accepted probes, as factors: 0.1 is 10 %; infinite where float32 did not accept."""
    accepted, expected = (x["status"] == ProbeStatus.ACCEPTED for x in (found, reference))
    ratio = np.where(accepted & expected, found["minimizer"] / np.where(expected, reference["minimizer"], 1), np.inf)
    error = np.exp(np.abs(np.log(ratio[accepted]))) - 1
    counts = collections.Counter(ProbeStatus(int(s)).name for s in found["status"])
    return {
        "arithmetic": arithmetic,
        "probe": probe,
        "points": len(accepted),
        "accepted_in_float32": int(expected.sum()),
        "status": dict(sorted(counts.items())),
        "median_error": float(np.quantile(error, 0.5, method="lower")),
        "error_90": float(np.quantile(error, 0.9, method="lower")),
        "more_than_10_percent": float(np.mean(error > 0.1)),
        "more_than_a_factor_of_2": float(np.mean(error > 1.0)),
    }


def runs(seeds: int) -> list[dict[str, Any]]:
    """The second table: one dict per probe and arithmetic, with two lines of float32 that show what is chance."""
    rows = []
    for name, make in PROBES.items():
        lines: list[tuple[str, Arithmetic, dict[str, float]]] = [
            ("float32", FLOAT32, {}),
            (NUDGED, FLOAT32, {"nudge": 1e-4}),
        ]
        for arithmetic_name, arithmetic in list(ARITHMETICS.items())[1:]:
            scale = {"loss_scale": 1024.0} if arithmetic.compute == jnp.float16 else {}
            lines.append((arithmetic_name, arithmetic, scale))
        reference = None
        for line, arithmetic, options in lines:
            trace = train(range(seeds), arithmetic, make(), **options)
            metrics = jax.tree.map(np.asarray, trace.metrics)
            rates = metrics["learning_rate"][:, WARM_UP:]
            reference = rates if reference is None else reference
            new = np.diff(metrics["num_probes"], prepend=0, axis=1) > 0
            rows.append(
                {
                    "arithmetic": line,
                    "probe": name,
                    "rate_relative_to_float32": np.exp(np.mean(np.log(rates / reference), axis=1)).tolist(),
                    "status": dict(
                        sorted(collections.Counter(ProbeStatus(int(s)).name for s in metrics["status"][new]).items())
                    ),
                    "last_losses": [float(x) for x in metrics["loss"][:, -30:].mean(axis=1)],
                }
            )
    return rows


def tables(row: dict[str, Any]) -> list[str]:
    """What was measured, in Markdown."""
    header = ["arithmetic", "probe", "accepted (in float32)", "not seen", "median error", "90 % below"]
    header += ["> 10 %", "> 2x"]
    lines = [
        [
            seen["arithmetic"],
            seen["probe"],
            f"{seen['status'].get('ACCEPTED', 0)} ({seen['accepted_in_float32']})",
            sum(seen["status"].get(s.name, 0) for s in (ProbeStatus.BELOW_ROUNDING, ProbeStatus.NO_CURVATURE)),
            f"{seen['median_error']:.1%}",
            _percent(seen["error_90"]),
            f"{seen['more_than_10_percent']:.0%}",
            f"{seen['more_than_a_factor_of_2']:.0%}",
        ]
        for seen in row["points"]
    ]
    at_points = pages.table(header, lines)
    header = ["probe", "arithmetic", "eta relative to float32, median", "of single runs", "accepted", "last losses"]
    lines = []
    for seen in row["runs"]:
        ratios, status = np.array(seen["rate_relative_to_float32"]), seen["status"]
        lines.append(
            [
                seen["probe"],
                seen["arithmetic"],
                f"{np.median(ratios):.2f}",
                f"{ratios.min():.2f} to {ratios.max():.2f}",
                f"{status.get('ACCEPTED', 0)} of {sum(status.values())}",
                f"{np.mean(seen['last_losses']):.3f}",
            ]
        )
    return [at_points, pages.table(header, lines)]


def _in_words(row: dict[str, Any]) -> list[str]:
    """How far each probe's answers are from those in float32, and what that does to the rate over whole runs."""
    medians = {
        probe: max(seen["median_error"] for seen in row["points"] if seen["probe"] == probe)
        for probe in dict.fromkeys(seen["probe"] for seen in row["points"])
    }
    default, *others = medians
    sentences = [
        "In the worst arithmetic, half of the answers of the default's probe are within "
        f"{_near(medians[default])} of those in float32."
    ]
    if others:
        theirs = " and ".join(f"within {_near(medians[probe])} for `{probe}`" for probe in others)
        sentences.append(f"They are {theirs}.")
    coarse = {
        seen["arithmetic"]: seen["rate_relative_to_float32"]
        for seen in row["runs"]
        if seen["probe"] == default and seen["arithmetic"] not in ("float32", NUDGED)
    }
    if coarse:
        widest = max(coarse, key=lambda name: max(coarse[name]) / min(coarse[name]))
        sentences.append(
            f"Over whole runs with {widest}, the default finds {min(coarse[widest]):.2f} to {max(coarse[widest]):.2f} "
            "times the learning rate of float32."
        )
    return sentences


def _near(error: float) -> str:
    return f"{100 * error:.1f} %"


_LEAST, _MOST = 1e-4, 10.0  # errors beyond are drawn at the edge
_COLOURS = {"retrospective": BLUE, "exact": GREEN, "finite_difference": ORANGE}


def _draw(results: store.Store, row: dict[str, Any]) -> str:
    """A lane for each probe in each arithmetic: a dot at the median error, a line to what nine of ten are below."""
    path = results.root / "precision.png"
    arithmetics = list(dict.fromkeys(seen["arithmetic"] for seen in row["points"]))
    probes = list(dict.fromkeys(seen["probe"] for seen in row["points"]))
    with pages.picture(path, size=(5.2, 1.5 + 0.2 * len(row["points"]))) as axes:
        axis = axes[0, 0]
        for seen in row["points"]:
            y = arithmetics.index(seen["arithmetic"]) + (probes.index(seen["probe"]) - (len(probes) - 1) / 2) / 4
            ends = [np.clip(_MOST if x is None else x, _LEAST, _MOST) for x in (seen["median_error"], seen["error_90"])]
            style = {"color": _COLOURS.get(seen["probe"], GREY)}
            label = seen["probe"] if seen["arithmetic"] == arithmetics[0] else None
            axis.plot(ends, [y, y], lw=2, **style)
            axis.plot(ends[:1], [y], "o", ms=5, label=label, **style)
        names = [name.replace(", ", ",\n") for name in arithmetics]
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set(xscale="log", xlim=(_LEAST / 1.5, _MOST * 1.5), ylim=(len(names) - 0.5, -0.5))
        axis.set_xlabel("error beside float32: a dot at the median,\na line to what 90 % of the probes are below")
        axis.grid(axis="x", color="0.92")
        axis.figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return path.name


def _percent(x: float | None) -> str:
    """A share of one; more than a tenfold error, or none that is finite, float32 would not have accepted."""
    return f"{x:.0%}" if x is not None and x < 10 else "> 1000%"
