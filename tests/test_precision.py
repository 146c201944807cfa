"""Low and high precision: what the learning rate is worth, and what is said where it can't be found.

On the network and the data of `benchmarks/questions/precision.py`, which measures the same at length.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KINDS, gen_state, greedy, one_probe, random_quadratic, sine_in_reverse

import gen_optax
from benchmarks.questions import precision
from gen_optax import ProbeStatus, _arithmetic

PAPER = gen_optax.algorithm_1(init_learning_rate=0.1)
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
    ("loss", "eps", "scalar_eps"),
    [
        (lambda w, x: jnp.sum(jnp.sin(w) * x), EPS[F32], EPS[F32]),
        (in_bf16, EPS[BF16], EPS[F32]),
        (data_in_bf16, EPS[F32], EPS[F32]),
        (jax.jit(in_bf16), EPS[BF16], EPS[F32]),
        (jax.jit(data_in_bf16), EPS[F32], EPS[F32]),
        (jax.checkpoint(in_bf16), EPS[BF16], EPS[F32]),
        (in_a_loop, EPS[BF16], EPS[BF16]),
        (in_a_branch, EPS[F16], EPS[F16]),
        (lambda w, x: jnp.sum(jax.nn.relu(w.astype(BF16)).astype(F32)), EPS[BF16], EPS[F32]),  # a custom_jvp
        (lambda w, x: jnp.sum(jax.nn.relu(w.astype(BF16))).astype(F32), EPS[BF16], EPS[BF16]),
        (lambda w, x: jnp.sum(w).astype(BF16), EPS[BF16], EPS[BF16]),
        (lambda w, x: jnp.float32(1.0), EPS[F32], EPS[F32]),
    ],
)
def test_the_trace_tells_the_arithmetic(loss, eps, scalar_eps):
    """Whatever the dtype of the loss; what does not depend on the parameters does not count."""
    x, expected = jnp.ones(4), (eps, scalar_eps, F32, frozenset())
    assert _arithmetic.arithmetic(jax.make_jaxpr(lambda w: loss(w, x))(jnp.ones(4))) == expected
    jax.jit(lambda x: _arithmetic.arithmetic(jax.make_jaxpr(lambda w: loss(w, x))(jnp.ones(4))) == expected or 1 / 0)(x)


def test_parameters_of_low_precision_are_coarse_whatever_is_computed():
    w = {"a": jnp.ones(3, BF16), "b": jnp.ones(3), "n": jnp.ones(3, jnp.int32)}
    assert _arithmetic.arithmetic(jax.make_jaxpr(lambda w: jnp.sum(w["b"]))(w)).eps == EPS[BF16]
    assert _arithmetic.arithmetic(jax.make_jaxpr(lambda w: jnp.sum(w["b"]))(w | {"a": 1.0})).eps == EPS[F32]


@pytest.mark.parametrize(("backend", "eps"), [("cpu", EPS[F32]), ("gpu", 2.0**-10), ("tpu", EPS[BF16])])
def test_matrix_units_that_round_float32_are_coarse(backend, eps, monkeypatch):
    """On other hardware a float32 product is not one, unless asked for."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    w, x = jnp.ones((2, 2)), jnp.ones((2, 2))
    assert _arithmetic.arithmetic(jax.make_jaxpr(lambda w: jnp.sum(x @ w))(w)).eps == eps
    assert _arithmetic.arithmetic(jax.make_jaxpr(lambda w: jnp.sum(x * w))(w)).eps == EPS[F32]
    with jax.default_matmul_precision("highest"):
        assert _arithmetic.arithmetic(jax.make_jaxpr(lambda w: jnp.sum(x @ w))(w)).eps == EPS[F32]


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_matrix_units_leave_float64_alone(backend, dtype, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    with jax.enable_x64(True):
        w, x = jnp.ones((2, 2), dtype), jnp.ones((2, 2), dtype)
        found = _arithmetic.arithmetic(jax.make_jaxpr(lambda w: jnp.sum(jnp.abs(x @ w)))(w))
        assert found.eps == found.scalar_eps == float(np.finfo(np.float64).eps)


@pytest.fixture(scope="module")
def trajectory():
    """Points of six float32 runs."""
    return precision.points_of(list(range(6)), stride=4)


REFERENCES = {}


def errors(name, arithmetic, trajectory):
    """Of the accepted probes, as `exp(|log ratio|) - 1`; and the statuses."""
    probe = precision.PROBES[name]()
    found = precision.infos(probe, arithmetic, trajectory)
    at = name, arithmetic.params
    if at not in REFERENCES:
        REFERENCES[at] = precision.infos(probe, arithmetic, trajectory, reference=True)
    reference = REFERENCES[at]
    accepted, expected = (x["status"] == ProbeStatus.ACCEPTED for x in (found, reference))
    ratio = found["minimizer"][accepted & expected] / reference["minimizer"][accepted & expected]
    return np.exp(np.abs(np.log(ratio))) - 1, found["status"], accepted, expected


@pytest.mark.parametrize(
    ("name", "probe"),
    [*((name, "retrospective") for name in LOW), (MIXED[1], "exact"), ("bfloat16 throughout, loss too", "exact")],
)
def test_exact_and_retrospective_are_right(name, probe, trajectory):
    """Derivatives are, and losses over sixteen steps, which change them by more than layers in half precision round."""
    error, _, accepted, expected = errors(probe, LOW[name], trajectory)
    assert np.mean(accepted == expected) > 0.9
    assert np.median(error) < 0.03
    assert np.mean(error < 0.1) >= 0.9


@pytest.mark.parametrize("name", [*MIXED, "bfloat16 weights and compute"])
def test_finite_difference_is_about_right(name, trajectory):
    """A single step changes the loss by less."""
    error, _, accepted, expected = errors("finite_difference", LOW[name], trajectory)
    assert np.mean(accepted == expected) > 0.9
    assert np.median(error) < 0.1
    assert np.mean(error < 1) > 0.9


def test_finite_difference_of_a_loss_in_bfloat16_is_right_or_abstains(trajectory):
    error, status, accepted, expected = errors("finite_difference", LOW["bfloat16 throughout, loss too"], trajectory)
    assert np.median(error) < 0.15  # single steps, small ones among them, in a loss of eight bits
    assert np.mean(accepted[expected]) < 0.9  # else this tests nothing
    on_own_batch = ABSTAINS | {ProbeStatus.ASCENT}
    assert set(status[expected & ~accepted]) <= on_own_batch


def test_what_is_lost_in_the_rounding_of_the_layers_is_not_taken_for_a_change():
    """Such steps change most weights by less than bfloat16 tells apart, and the loss by less than a thousandth."""

    def loss(params):
        return precision.loss_fn(params, jnp.arange(64), LOW["float32 weights, bfloat16 compute"])

    params = precision.init(0)
    step = jax.tree.map(jnp.negative, jax.grad(loss)(params))
    for rate, status in ((1e-4, ProbeStatus.BELOW_ROUNDING), (0.1, ProbeStatus.ACCEPTED)):
        tx = gen_optax.scale_by_gen(**greedy(rate))
        _, state = tx.update(step, tx.init(params), params, value_fn=loss)
        assert state.info.status == status


SEEDS, STEPS = 8, 120


@functools.cache
def run(name, probe):
    """Metrics of a few runs, shape `(seeds, steps)`; float16 with a loss scale."""
    arithmetic = precision.ARITHMETICS[name]
    scale = 1024.0 if arithmetic.compute == F16 else 1.0
    trace = precision.train(range(SEEDS), arithmetic, precision.PROBES[probe](), STEPS, scale)
    return jax.tree.map(np.asarray, trace.metrics)


@pytest.mark.parametrize(
    ("name", "probe"),
    [(MIXED[0], "retrospective"), (MIXED[1], "retrospective"), (MIXED[0], "exact"), (MIXED[1], "finite_difference")],
)
def test_the_rate_of_a_run_is_that_of_float32(name, probe):
    """Found from nothing or, on the gradient's own batch, by Algorithm 1."""
    low, reference = run(name, probe), run("float32", probe)
    # While it is being found: after it a probe weighs up to a half, and two float32 runs part as well.
    ratio = np.log(low["learning_rate"] / reference["learning_rate"])[:, 20:50]
    # The median of runs, as single ones go other ways: of two float32 runs some do.
    assert np.median(np.mean(ratio, axis=1)) == pytest.approx(0, abs=0.05)


def test_numbers_that_carry_the_rate_are_float32():
    metrics = run(MIXED[0], "retrospective")
    for field in ("learning_rate", "applied_learning_rate", "value", "slope", "curvature", "optimal_learning_rate"):
        assert metrics[field].dtype == np.float32
    assert len(np.unique(metrics["learning_rate"][0])) > STEPS / 4  # a rate in bfloat16 would stand still


@pytest.mark.parametrize("probe", KINDS.values(), ids=KINDS)
def test_a_loss_that_is_scaled_throughout_gives_the_same_rate(probe):
    """`value`, `grad` and `value_fn` may also all keep the scale: b and A grow alike."""
    problem = random_quadratic(0)

    def rate(scale):
        tx = gen_optax.gen(optax.adam(1.0), controller=PAPER, probe=probe, every=1)
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
    tx = optax.apply_if_finite(
        gen_optax.gen(optax.sgd(1.0), controller=PAPER, probe=gen_optax.retrospective(), every=1), 10
    )
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
            tx = gen_optax.scale_by_gen(probe=KINDS[name], **greedy(step))
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


def test_a_function_without_a_forward_mode_is_no_matter():
    """Fused attention is one. The default probe differentiates nothing."""

    def info(function):
        def loss(w):
            return jnp.mean(function(w.astype(BF16)).astype(F32) ** 2)

        tx = gen_optax.scale_by_gen(controller=PAPER, probe=gen_optax.retrospective(), every=1)
        w = jnp.linspace(0.1, 1, 64)
        state = tx.init(w)
        for _ in range(2):
            updates, state = tx.update(-w, state, w, value_fn=loss)
            w = optax.apply_updates(w, updates)
        return state.info

    seen, expected = info(sine_in_reverse), info(jnp.sin)
    assert seen.status == ProbeStatus.ACCEPTED
    jax.tree.map(np.testing.assert_array_equal, seen, expected)
