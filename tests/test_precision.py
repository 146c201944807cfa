"""Low and high precision: what the learning rate is worth, and what is said where it can't be found.

On the network and the data of `benchmarks/questions/precision.py`, which measures the same at length.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KINDS, gen_state, one_probe, random_quadratic, sine_in_reverse

import gen_optax
from benchmarks import store
from benchmarks.questions import precision
from gen_optax import ProbeStatus, _arithmetic

BF16, F16, F32 = jnp.bfloat16, jnp.float16, jnp.float32
EPS = {dtype: float(jnp.finfo(dtype).eps) for dtype in (BF16, F16, F32)}
LOW = {name: a for name, a in precision.ARITHMETICS.items() if a is not precision.FLOAT32}
MIXED = ["float32 weights, bfloat16 compute", "float32 weights, float16 compute"]
ABSTAINS = {ProbeStatus.BELOW_ROUNDING, ProbeStatus.NO_CURVATURE}


def in_bf16(w, x):
    return jnp.sum((w.astype(BF16) * x.astype(BF16)).astype(F32))


def data_in_bf16(w, x):
    return jnp.sum(w * x.astype(BF16).astype(F32))


def in_a_loop(w, x):
    return jax.lax.scan(lambda c, xi: (c + jnp.sum(w * xi).astype(BF16).astype(F32), None), jnp.float32(0), x)[0]


def in_a_branch(w, x):
    return jax.lax.cond(x[0] > 0, lambda w: jnp.sum(w.astype(F16)).astype(F32), jnp.sum, w)


@pytest.mark.parametrize(
    ("loss", "eps", "forward_mode"),
    [
        (lambda w, x: jnp.sum(jnp.sin(w) * x), EPS[F32], True),
        (in_bf16, EPS[BF16], True),
        (data_in_bf16, EPS[F32], True),
        (jax.jit(in_bf16), EPS[BF16], True),
        (jax.jit(data_in_bf16), EPS[F32], True),
        (jax.checkpoint(in_bf16), EPS[BF16], True),
        (in_a_loop, EPS[BF16], True),
        (in_a_branch, EPS[F16], True),
        (lambda w, x: jnp.sum(jax.nn.relu(w.astype(BF16))).astype(F32), EPS[BF16], True),  # a custom_jvp
        (lambda w, x: jnp.sum(w).astype(BF16), EPS[BF16], True),
        (lambda w, x: jnp.sum(sine_in_reverse(w)), EPS[F32], False),
        (jax.jit(lambda w, x: jnp.sum(w * sine_in_reverse(x))), EPS[F32], True),
        (lambda w, x: jnp.float32(1.0), EPS[F32], True),
    ],
)
def test_the_trace_tells_the_arithmetic(loss, eps, forward_mode):
    """Whatever the dtype of the loss; what does not depend on the parameters does not count."""
    x = jnp.ones(4)
    assert _arithmetic.arithmetic(lambda w: loss(w, x), jnp.ones(4)) == (eps, forward_mode)
    jax.jit(lambda x: _arithmetic.arithmetic(lambda w: loss(w, x), jnp.ones(4)) == (eps, forward_mode) or 1 / 0)(x)


def test_parameters_of_low_precision_are_coarse_whatever_is_computed():
    w = {"a": jnp.ones(3, BF16), "b": jnp.ones(3), "n": jnp.ones(3, jnp.int32)}
    assert _arithmetic.arithmetic(lambda w: jnp.sum(w["b"]), w).eps == EPS[BF16]
    assert _arithmetic.arithmetic(lambda w: jnp.sum(w["b"]), w | {"a": 1.0}).eps == EPS[F32]


@pytest.mark.parametrize(("backend", "eps"), [("cpu", EPS[F32]), ("gpu", 2.0**-10), ("tpu", EPS[BF16])])
def test_matrix_units_that_round_float32_are_coarse(backend, eps, monkeypatch):
    """On other hardware a float32 product is not one, unless asked for."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    w, x = jnp.ones((2, 2)), jnp.ones((2, 2))
    assert _arithmetic.arithmetic(lambda w: jnp.sum(x @ w), w).eps == eps
    assert _arithmetic.arithmetic(lambda w: jnp.sum(x * w), w).eps == EPS[F32]
    with jax.default_matmul_precision("highest"):
        assert _arithmetic.arithmetic(lambda w: jnp.sum(x @ w), w).eps == EPS[F32]


@pytest.fixture(scope="module")
def trajectory():
    """Points of three float32 runs."""
    return precision.points_of([0, 1, 2], stride=16)


@pytest.fixture(scope="module")
def single_steps():
    """The same, where a probe that looks back judges one step alone."""
    return precision.points_of([0, 1, 2], stride=16, behind=1)


REFERENCES = {}


def errors(probe, arithmetic, trajectory, by_slopes=False):
    """Of the accepted probes, as `exp(|log ratio|) - 1`; and the statuses."""
    found = precision.infos(probe, arithmetic, trajectory)
    at = probe, arithmetic.params, by_slopes, id(trajectory)
    if at not in REFERENCES:
        with precision.by_slopes("retrospective" if by_slopes else ""):
            REFERENCES[at] = precision.infos(probe, arithmetic, trajectory, reference=True)
    reference = REFERENCES[at]
    accepted, expected = (x["status"] == ProbeStatus.ACCEPTED for x in (found, reference))
    ratio = found["minimizer"][accepted & expected] / reference["minimizer"][accepted & expected]
    return np.exp(np.abs(np.log(ratio))) - 1, found["status"], accepted, expected


@pytest.mark.parametrize("name", LOW)
def test_exact_is_right(name, trajectory):
    error, _, accepted, expected = errors(gen_optax.exact(), LOW[name], trajectory)
    assert np.mean(accepted == expected) > 0.9
    assert np.median(error) < 0.03
    assert np.mean(error < 0.1) >= 0.9


@pytest.mark.parametrize("name", [*MIXED, "bfloat16 weights and compute"])
def test_retrospective_is_right_or_abstains(name, trajectory):
    error, status, accepted, expected = errors(gen_optax.retrospective(), LOW[name], trajectory, by_slopes=True)
    assert np.median(error) < 0.1
    assert np.mean(accepted[expected]) > 0.7
    assert set(status[expected & ~accepted]) <= ABSTAINS


@pytest.mark.parametrize("name", MIXED)
def test_finite_difference_is_right_or_abstains(name, trajectory):
    error, status, accepted, expected = errors(gen_optax.finite_difference(), LOW[name], trajectory)
    assert np.median(error) < 0.1
    assert np.mean(accepted[expected]) < (0.9 if "bfloat16" in name else 0.95)  # else this tests nothing
    assert set(status[expected & ~accepted]) <= ABSTAINS


@pytest.mark.parametrize(("probe", "least"), [("retrospective", 0.25), ("finite_difference", 0.2)])
def test_taking_the_loss_for_float32_would_be_silently_wrong(probe, least, single_steps):
    """What the look at the trace is for: most probes of single steps pass without it, every third or fifth is off."""
    with precision.loss_taken_for_float32():
        error, *_ = errors(precision.PROBES[probe](), LOW["float32 weights, bfloat16 compute"], single_steps)
    assert np.mean(error > 0.1) > least


def test_the_loss_of_several_steps_is_seen_better(trajectory):
    """Over eight steps it mostly changes by more than it is rounded by."""
    with precision.loss_taken_for_float32():
        error, *_ = errors(gen_optax.retrospective(), LOW["float32 weights, bfloat16 compute"], trajectory)
    assert np.median(error) < 0.03
    assert np.mean(error > 0.1) < 0.25


SEEDS, STEPS = 4, 120


@functools.cache
def run(name, probe):
    """Metrics of a few runs, shape `(seeds, steps)`; float16 with a loss scale."""
    arithmetic = precision.ARITHMETICS[name]
    scale = 1024.0 if arithmetic.compute == F16 else 1.0
    trace = precision.train(range(SEEDS), arithmetic, precision.PROBES[probe](), STEPS, scale)
    return jax.tree.map(np.asarray, trace.metrics)


@pytest.mark.parametrize("probe", ["retrospective", "exact"])
@pytest.mark.parametrize("name", MIXED)
def test_the_rate_found_from_nothing_is_that_of_float32(name, probe):
    low, reference = run(name, probe), run("float32", probe)
    ratio = (low["learning_rate"] / reference["learning_rate"])[:, 20:]
    assert np.exp(np.mean(np.log(ratio))) == pytest.approx(1, rel=0.1)


def test_numbers_that_carry_the_rate_are_float32():
    metrics = run(MIXED[0], "exact")
    for field in ("learning_rate", "applied_learning_rate", "value", "slope", "curvature", "optimal_learning_rate"):
        assert metrics[field].dtype == np.float32
    assert len(np.unique(metrics["learning_rate"][0])) > STEPS / 4  # a rate in bfloat16 would stand still


def test_finite_difference_from_nothing_says_that_it_sees_nothing():
    """The first rate is far below the final one: its changes of the loss drown in bfloat16."""
    metrics = run(MIXED[0], "finite_difference")
    assert set(np.unique(metrics["status"])) <= {ProbeStatus.BELOW_ROUNDING}
    assert np.all(metrics["num_accepted"] == 0)


@pytest.mark.parametrize("probe", KINDS.values(), ids=KINDS)
def test_a_loss_that_is_scaled_throughout_gives_the_same_rate(probe):
    """`value`, `grad` and `value_fn` may also all keep the scale: b and A grow alike."""
    problem = random_quadratic(0)

    def rate(scale):
        tx = gen_optax.gen(optax.adam(1.0), init_learning_rate=0.1, probe=probe, every=1)
        loss = lambda w: scale * problem.value_fn(w)  # noqa: E731
        w = jnp.ones(6)
        state = tx.init(w)
        for _ in range(3):
            value, grads = jax.value_and_grad(loss)(w)
            updates, state = tx.update(grads, state, w, value=value, value_fn=loss)
            w = optax.apply_updates(w, updates)
        return gen_state(state).learning_rate

    np.testing.assert_allclose(rate(1024.0), rate(1.0), rtol=1e-4)


def test_an_overflow_of_scaled_gradients_costs_one_step():
    """With `optax.apply_if_finite` around: parameters and learning rate stay, the next step goes on."""
    tx = optax.apply_if_finite(gen_optax.gen(optax.sgd(1.0), init_learning_rate=0.1, every=1), 10)
    w = jnp.ones(2, F16)

    def loss(w):
        return jnp.sum(w.astype(F32) ** 2)

    state = tx.init(w)
    for scale in (1.0, 6e4, 1.0, 1.0):  # the gradient is 2 at first, and float16 ends at 65504
        value, grads = jax.value_and_grad(loss)(w)
        grads = jax.tree.map(lambda g: g * jnp.asarray(scale, F16) / jnp.asarray(scale, F16), grads)  # noqa: B023
        before, rate = w, gen_state(state).learning_rate
        updates, state = tx.update(grads, state, w, value=value, value_fn=loss)
        w = optax.apply_updates(w, updates)
        if scale > 1:
            np.testing.assert_array_equal(w, before)
            np.testing.assert_array_equal(gen_state(state).learning_rate, rate)
    assert gen_state(state).info.num_accepted == 2
    assert loss(w) < 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", KINDS)
def test_x64(name, dtype):
    """Scalars are float64; the answer is as good as the parameters' type."""
    problem = random_quadratic(1)
    with jax.enable_x64(True):
        w, u = jnp.ones(6, dtype), -jnp.asarray(problem.gradient(np.ones(6)), dtype)
        slope, curvature = problem.slope_and_curvature(np.ones(6), u)
        value, grad = jax.value_and_grad(problem.value_fn)(w)
        step = 0.7 * slope / curvature
        if name == "retrospective":  # looks back on the step from w: two calls
            tx = gen_optax.scale_by_gen(step, KINDS[name], every=1, max_change=None)
            scaled, state = tx.update(u, tx.init(w), w, value=value, grad=grad, value_fn=problem.value_fn)
            w = optax.apply_updates(w, scaled)
            value, grad = jax.value_and_grad(problem.value_fn)(w)
            _, state = tx.update(u, state, w, value=value, grad=grad, value_fn=problem.value_fn)
        else:
            state, _ = one_probe(KINDS[name], problem.value_fn, w, u, step, value, grad)
        assert {x.dtype for x in jax.tree.leaves(state.info) if jnp.issubdtype(x.dtype, jnp.floating)} == {
            jnp.dtype(jnp.float64)
        }
        assert state.learning_rate.dtype == jnp.float64
        rtol = 1e-10 if dtype == jnp.float64 else 1e-4
        np.testing.assert_allclose(state.info.optimal_learning_rate, slope / curvature, rtol)


@pytest.mark.parametrize("given", [True, False], ids=["value and grad given", "none given"])
@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bfloat16", "float32"])
def test_a_function_with_a_reverse_rule_only_is_differentiated_in_reverse(given, dtype):
    """Fused attention is one. The probe sees what it sees of the same function with every rule."""

    def loss(w, function):
        return 3.0 + jnp.mean(function(w["a"].astype(dtype)).astype(F32) ** 2) + w["b"] ** 2

    def info(function):
        tx = gen_optax.scale_by_gen(0.1, gen_optax.retrospective(), every=1)
        fn = functools.partial(loss, function=function)
        w = {"a": jnp.linspace(0.1, 1, 64), "b": jnp.float32(0.5), "n": jnp.arange(3)}
        state = tx.init(w)
        for _ in range(2):
            value, grad = jax.value_and_grad(fn, allow_int=True)(w)
            kept = {"value": value, "grad": grad} if given else {}
            updates, state = tx.update(jax.tree.map(jnp.negative, w), state, w, **kept, value_fn=fn)
            w = optax.apply_updates(w, updates)
        return state.info

    seen, expected = info(sine_in_reverse), info(jnp.sin)
    assert seen.status == expected.status == ProbeStatus.ACCEPTED
    rtol = 0.02 if dtype == BF16 else 1e-4
    np.testing.assert_allclose(seen.slope, expected.slope, rtol)
    np.testing.assert_allclose(seen.curvature, expected.curvature, rtol)


def test_the_guide_shows_the_measured_numbers():
    (row,) = store.Store(store.RESULTS).note("precision")
    guide = (pathlib.Path(__file__).parents[1] / "docs" / "guides" / "precision.md").read_text()
    assert all(table in guide for table in precision.tables(row))
