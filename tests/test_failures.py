"""What goes wrong in training: the parameters stay finite, the rate survives, the message helps."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KINDS, gen_state, jitted_update, train

import gen_optax
from gen_optax import ProbeStatus

GREEDY = {"every": 1, "smoothing": 0.0, "smooth": "learning_rate", "max_change": None, "sigma": 1.0}


def bowl(w):
    return jnp.sum(w**2)


def step_fn(tx, loss_fn):
    """A jitted training step with every extra argument: `(w, state, *batch) -> (w, state)`."""

    @jax.jit
    def step(w, state, *batch):
        value_fn = functools.partial(lambda w, batch: loss_fn(w, *batch), batch=batch)
        value, grad = jax.value_and_grad(value_fn)(w)
        updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(w, updates), state

    return step


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_whose_loss_is_not_finite(name):
    """Loss and gradient are lost now and then: the rate stays, and apply_if_finite keeps the parameters."""
    tx = optax.apply_if_finite(gen_optax.gen(optax.adam(1.0), init_learning_rate=0.1, probe=KINDS[name], every=1), 5)
    step = step_fn(tx, lambda w, weight: jnp.sum(w**2) * weight)
    w = jnp.array([1.0, -2.0])
    state = tx.init(w)
    for bad in (np.nan, np.inf, -np.inf):
        w, state = step(w, state, 1.0)
        before = gen_state(state).learning_rate
        for _ in range(2):
            reached, state = step(w, state, bad)
            np.testing.assert_array_equal(reached, w)
            assert gen_state(state).learning_rate == before
    for _ in range(20):
        w, state = step(w, state, 1.0)
    assert bowl(w) < 1.0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("smooth", ["learning_rate", "coefficients"])
def test_what_is_not_finite_never_reaches_the_rate(name, smooth):
    """Without any guard around it: whatever is broken, the rate, the averages and the next steps are not."""
    tx = gen_optax.scale_by_gen(0.1, KINDS[name], **GREEDY | {"smooth": smooth})
    w = jnp.array([1.0, -2.0])
    update = jitted_update(tx, lambda w, weight: jnp.sum(w**2) * weight)
    for bad in (np.nan, np.inf):
        for weight, u in ((bad, -w), (1.0, w * bad), (bad, w * bad)):
            _, state = update(u, tx.init(w), w, value=bowl(w) * weight, grad=2 * w * weight, weight=weight)
            assert state.learning_rate == np.float32(0.1)
            assert all(np.isfinite(a) for a in state.averages)
            assert state.info.status in (ProbeStatus.NONE, ProbeStatus.NOT_FINITE)
            _, state = update(-w, state, w, value=bowl(w), grad=2 * w, weight=1.0)
            assert 0 < state.learning_rate < np.inf


CLIFF = 2.0


def cliff(w, depth=jnp.nan):
    """The bowl around 1, with a cliff at |w| = 2."""
    return jnp.where(jnp.abs(w) < CLIFF, jnp.sum((w - 1.0) ** 2), depth)


@pytest.mark.parametrize("name", ["three points", "free slope"])
@pytest.mark.parametrize("depth", [np.nan, np.inf])
@pytest.mark.parametrize("smooth", ["log", "learning_rate", "coefficients"])
def test_a_loss_that_breaks_only_at_the_candidate(name, depth, smooth):
    """The rate falls, the step is withheld, the very next call probes although none is due, and training recovers."""
    tx = gen_optax.gen(
        optax.sgd(1.0), init_learning_rate=30.0, probe=KINDS[name], every=2, smoothing=0.5, smooth=smooth
    )
    step = step_fn(tx, functools.partial(cliff, depth=depth))
    w = jnp.zeros(())
    state = tx.init(w)
    # Start at a call at which a probe is due, so that no step is taken blindly.
    state = (*state[:-1], gen_state(state)._replace(count=jnp.int32(1)))
    reached, state = step(w, state)
    assert gen_state(state).info.status == ProbeStatus.OVERSHOOT
    assert reached == w
    assert gen_state(state).applied_learning_rate == 0
    np.testing.assert_allclose(gen_state(state).learning_rate, 3.0, rtol=1e-6)
    reached, state = step(w, state)
    assert gen_state(state).info.num_probes == 2
    for _ in range(40):
        w, state = step(w, state)
        assert np.isfinite(w)
    assert abs(w - 1.0) < 1e-2


@pytest.mark.parametrize(
    "wall", [lambda w: 0 * jnp.sqrt(CLIFF - w), lambda w: jnp.exp(1e3 * (w - CLIFF))], ids=["NaN", "inf"]
)
@pytest.mark.parametrize("base", [optax.sgd(1.0), optax.apply_if_finite(optax.adam(1.0), 100)], ids=["sgd", "adam"])
@pytest.mark.parametrize("every", [1, 4])
def test_a_step_over_the_cliff_is_taken_back(wall, base, every):
    """The retrospective probe sees it when it has happened: it goes back to where the loss was finite."""
    tx = gen_optax.gen(base, init_learning_rate=30.0, probe=gen_optax.retrospective(), every=every, max_change=None)
    step = step_fn(tx, lambda w: (w - 1.0) ** 2 + wall(w))  # beyond it the gradient is lost as well
    w = jnp.zeros(())
    state = tx.init(w)
    reached, state = step(w, state)
    assert reached > CLIFF  # gone over
    reached, state = step(reached, state)
    np.testing.assert_allclose(reached, w, atol=1e-6)
    assert gen_state(state).info.status == ProbeStatus.OVERSHOOT
    np.testing.assert_allclose(gen_state(state).learning_rate, 3.0, rtol=1e-6)
    w = reached
    for _ in range(60):
        w, state = step(w, state)
        assert np.isfinite(w)
    assert abs(w - 1.0) < 0.1


def test_a_cliff_without_value_is_left_again():
    """No alarm then, but no memory begins beyond the cliff either: what leads back would be lost for good."""
    tx = gen_optax.scale_by_gen(init_learning_rate=1.0)

    def loss_fn(w):
        return jnp.where(w[0] > 1, jnp.nan, (w[0] - 3) ** 2)

    update = jax.jit(functools.partial(tx.update, jnp.array([0.3]), value_fn=loss_fn))
    w = jnp.zeros(1)
    state = tx.init(w)._replace(count=jnp.int32(1))  # the rate is taken as given
    lost = 0
    for _ in range(200):
        updates, state = update(state, w)
        w = w + updates
        lost += bool(jnp.isnan(loss_fn(w)))
    assert lost < 50
    assert not jnp.isnan(loss_fn(w))


def test_parameters_that_are_lost_do_not_take_the_rate_along():
    """A NaN batch without any guard makes the parameters NaN, as it does in optax; the rate is not to blame."""
    tx = gen_optax.gen(optax.sgd(1.0), init_learning_rate=0.1, probe=gen_optax.retrospective(), every=1)
    step = step_fn(tx, lambda w, weight: jnp.sum(w**2) * weight)
    w = jnp.ones(2)
    state = tx.init(w)
    for weight in (1.0, np.nan, 1.0, 1.0):
        w, state = step(w, state, weight)
    found = gen_state(state)
    assert found.learning_rate == found.first_learning_rate or found.info.num_accepted > 0
    assert gen_state(state).info.status == ProbeStatus.NOT_FINITE


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("smooth", ["log", "learning_rate", "coefficients"])
def test_zero_gradients(name, smooth):
    tx = gen_optax.gen(optax.adam(1.0), init_learning_rate=0.1, probe=KINDS[name], every=1, smooth=smooth)
    w, state, _, _ = train(tx, jnp.array([1.0, 2.0]), lambda w: 0.0 * jnp.sum(w) + 3.0, 5)
    assert gen_state(state).info.status == ProbeStatus.BELOW_ROUNDING
    assert gen_state(state).learning_rate == np.float32(0.1)
    np.testing.assert_array_equal(w, [1.0, 2.0])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("loss_fn", "start", "status"),
    [
        (lambda w: w[0] ** 2 - w[1] ** 2, [0.1, 1.0], "NO_CURVATURE"),  # a saddle, down the ridge
        (lambda w: 1 - jnp.sum(w**2), [0.1, 1.0], "NO_CURVATURE"),  # a dome
        (lambda w: jnp.sum(w) + 10.0, [0.1, 1.0], "NO_CURVATURE"),  # a plane
        (lambda w: w[0] * w[1] + 1.0, [1.0, 1.0], "ACCEPTED"),
    ],
    ids=["saddle", "dome", "plane", "valley"],
)
def test_saddles_domes_and_planes(name, loss_fn, start, status):
    """No minimum in sight: a known rate on the own batch stays; an independent verdict may raise it, in bounds."""
    options = {"every": 1, "max_change": None, "max_learning_rate": 0.05}
    tx = gen_optax.gen(optax.sgd(1.0), init_learning_rate=0.01, probe=KINDS[name], **options)
    w, state, _, states = train(tx, jnp.array(start), loss_fn, 6)
    found = gen_state(states).info.status[2:]
    # A plane's curvature is pure rounding, which may be too small for the finite difference to tell from none.
    assert all(ProbeStatus(int(s)).name == status for s in found)
    assert np.all(np.isfinite(w))
    if status == "NO_CURVATURE" and name != "retrospective":
        assert state[-1].learning_rate == np.float32(0.01)
    assert 0 < state[-1].learning_rate <= np.float32(0.05)


@pytest.mark.parametrize("name", KINDS)
def test_ascent_directions(name):
    """Updates with the wrong sign: not believed, never a negative rate."""
    tx = gen_optax.gen(optax.sgd(-1.0), init_learning_rate=0.01, probe=KINDS[name], every=1)
    w, state, _, states = train(tx, jnp.ones(2), bowl, 6)
    assert all(gen_state(states).info.status[1:] == ProbeStatus.ASCENT)
    assert 0 < gen_state(state).learning_rate <= np.float32(0.01)
    assert np.all(np.isfinite(w))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("log_unit", [-30, 30])
def test_losses_of_1e30_and_1e_minus_30(name, log_unit):
    """From a known rate that is ten times too small, and with none at all, on a loss in any unit."""
    unit = 10.0**log_unit

    def loss_fn(w):
        return jnp.float32(unit) * (jnp.sum(w**2) + 1.0)

    base = optax.sign_sgd(1.0)
    for rate in (0.01, None):
        tx = optax.chain(base, gen_optax.scale_by_gen(rate, KINDS[name], every=1, num_steps=60))
        w, state, losses, _ = train(tx, jnp.array([1.0, -1.0]), loss_fn, 60, grad=True)
        assert np.all(np.isfinite(losses))
        assert np.all(np.isfinite(w))
        assert gen_state(state).info.num_accepted > 0
        assert bowl(w) < 0.5, rate


@hypothesis.given(
    losses=st.lists(st.floats(width=32, allow_subnormal=False), min_size=3, max_size=3),
    value=st.floats(width=32),
    log_rate=st.floats(-12, 6),
    smooth=st.sampled_from(["log", "learning_rate", "coefficients"]),
    max_change=st.sampled_from([None, 2.0]),
)
@hypothesis.settings(max_examples=200)
def test_any_losses_at_the_candidates(losses, value, log_rate, smooth, max_change):
    """NaN, infinities, both ends of float32: the rate stays finite and positive."""
    state = candidate_losses(smooth, max_change)(
        jnp.array(losses, jnp.float32), jnp.float32(value), jnp.float32(10.0**log_rate)
    )
    assert 0 < state.learning_rate < np.inf
    assert 0 <= state.applied_learning_rate < np.inf
    assert all(np.isfinite(a) for a in state.averages)
    assert not state.info.accepted or np.all(np.isfinite([losses[0], losses[2], value]))


@functools.cache
def candidate_losses(smooth, max_change):
    def run(losses, value, rate):
        def value_fn(w):
            return jnp.where(w < -0.5, losses[0], jnp.where(w > 0.5, losses[2], losses[1]))

        tx = gen_optax.scale_by_gen(
            rate, gen_optax.finite_difference(), **GREEDY | {"smooth": smooth, "max_change": max_change}
        )
        w = jnp.zeros(())
        return tx.update(1 / rate, tx.init(w), w, value_fn=value_fn, value=value)[1]

    return jax.jit(run)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("rate", "integers"), [(0.1, "zeros"), (0.1, "float0"), (None, "zeros")])
def test_integer_empty_and_none_leaves(name, rate, integers):
    """Left alone, whatever the gradient convention: zeros, or float0 from allow_int."""
    params = {"w": jnp.array([1.0, -1.0]), "n": jnp.array([3, 4]), "empty": jnp.zeros((0, 2)), "none": None}

    def loss_fn(p):
        return jnp.sum(p["w"] ** 2) * jnp.sum(p["n"]) / 7 + jnp.sum(p["empty"])

    tx = gen_optax.scale_by_gen(rate, KINDS[name], every=1)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn, allow_int=True)(params)
        assert grads["n"].dtype == jax.dtypes.float0
        zeros = jnp.zeros_like(params["n"])
        updates = {**grads, "w": -grads["w"], "n": zeros if integers == "zeros" else grads["n"]}
        updates, state = tx.update(updates, state, params, value=value, value_fn=loss_fn, grad=grads)
        if integers == "float0":
            assert updates["n"].dtype == jax.dtypes.float0
        return (optax.apply_updates(params, {**updates, "n": zeros}), state), value

    (w, state), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=40))((params, tx.init(params)))
    np.testing.assert_array_equal(w["n"], [3, 4])
    assert w["none"] is None
    assert w["empty"].shape == (0, 2)
    assert loss_fn(w) < 0.9 * loss_fn(params)
    assert state.info.num_accepted > 0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("params", [{}, {"a": None}, {"n": jnp.arange(3)}], ids=["nothing", "none", "integers"])
def test_nothing_to_train(name, params):
    tx = gen_optax.scale_by_gen(None, KINDS[name], every=1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = jitted_update(tx, lambda p: jnp.float32(3.0))
    state = tx.init(params)
    for _ in range(2):
        updates, state = update(zeros, state, params, value=jnp.float32(3.0), grad=zeros)
    jax.tree.map(np.testing.assert_array_equal, updates, zeros)
    assert state.learning_rate == 0
    assert state.info.status == ProbeStatus.BELOW_ROUNDING


@pytest.mark.parametrize("name", [n for n in KINDS if n != "free slope"])
@pytest.mark.parametrize("rate", [0.01, None])
@pytest.mark.parametrize("value", [True, False])
def test_complex_parameters(name, rate, value):
    """The conjugate goes into the base, as ever in JAX: b and A are those of the real and imaginary parts."""
    centre = jnp.array([1.0 + 2.0j, -1.0j])

    def loss_fn(w):
        return jnp.sum(jnp.abs(w - centre) ** 2 * jnp.array([1.0, 3.0]))

    tx = gen_optax.gen(optax.sgd(1.0), init_learning_rate=rate, probe=KINDS[name], every=1)

    @jax.jit
    def step(w, state):
        loss, grad = jax.value_and_grad(loss_fn)(w)
        extra = {"value": loss} if value else {}
        updates, state = tx.update(jnp.conj(grad), state, w, value_fn=loss_fn, **extra)
        return optax.apply_updates(w, updates), state

    w = jnp.zeros(2, jnp.complex64)
    state = tx.init(w)
    w1, state = step(w, state)
    if rate is not None:
        _, second = step(w1, state)
        # G = 2 (w - c) k: b = |G|^2, A = 2 sum k |G|^2, by the real algebra; the same step for all probes.
        g = 2 * np.array([1.0, 3.0]) * np.abs(np.asarray(centre)) ** 1
        b, a = np.sum(g**2), 2 * np.sum(np.array([1.0, 3.0]) * g**2)
        info = gen_state(second if name == "retrospective" else state).info
        np.testing.assert_allclose(info.slope, b, rtol=1e-3)
        np.testing.assert_allclose(info.curvature, a, rtol=2e-2)
    for _ in range(100):
        w, state = step(w, state)
    assert w.dtype == jnp.complex64
    assert loss_fn(w) < 0.1 * loss_fn(jnp.zeros(2))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda w: w**2, r"value_fn must return a real scalar.*shape \(3,\).*jnp\.mean"),
        (lambda w: jnp.sum(w * 1j), r"real scalar.*complex64"),
        (lambda w: 3, r"real scalar.*int32"),
        (lambda w: (w, jnp.sum(w)), r"real scalar.*shape \(3,\)"),
    ],
    ids=["vector", "complex", "integer", "aux first"],
)
def test_losses_that_are_no_real_scalar(name, loss, message):
    w = jnp.ones(3)
    tx = gen_optax.scale_by_gen(0.1, KINDS[name])
    with pytest.raises(ValueError, match=message):
        tx.update(-w, tx.init(w), w, value_fn=loss, grad=w)


def test_a_value_that_is_no_real_scalar():
    w = jnp.ones(3)
    tx = gen_optax.scale_by_gen(0.1)
    with pytest.raises(ValueError, match=r"value must be a real scalar.*shape \(3,\)"):
        tx.update(-w, tx.init(w), w, value=w, value_fn=bowl)


def test_a_value_with_aux_says_what_to_pass():
    tx = gen_optax.scale_by_gen(0.1)
    with pytest.raises(ValueError, match=r"value must be a real scalar loss, got a tuple. .* pass loss alone"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value=(1.0, {"accuracy": 1.0}), value_fn=bowl)


def test_value_fn_may_name_value_and_grad():
    def value_fn(w, value, grad):
        return bowl(w) + 0 * value + 0 * jnp.sum(grad)

    tx = gen_optax.scale_by_gen(0.1, every=1)
    tx.update(-jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value=2.0, grad=jnp.ones(2), value_fn=value_fn)


def test_a_base_that_needs_the_value_says_so_itself():
    tx = gen_optax.gen(optax.polyak_sgd())
    with pytest.raises(TypeError, match="value"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value_fn=bowl)


def test_missing_arguments_are_told_with_the_line_to_write():
    w = jnp.ones(3)
    tx = gen_optax.gen(optax.sgd(1.0))
    line = r"\n    updates, state = tx\.update\(grads, state, params, value=value, value_fn=loss_fn, batch=batch\)"
    with pytest.raises(ValueError, match="pass params to update.*" + line):
        tx.update(w, tx.init(w), value_fn=bowl)
    with pytest.raises(ValueError, match="pass value_fn=loss_fn to update.*" + line):
        tx.update(w, tx.init(w), w)
    with pytest.raises(ValueError, match="value_fn needs the argument batch.*" + line):
        tx.update(w, tx.init(w), w, value_fn=lambda w, batch: bowl(w))


def test_an_error_inside_value_fn_comes_through_unchanged():
    def value_fn(w):
        raise KeyError("mine")

    w = jnp.ones(3)
    tx = gen_optax.scale_by_gen(0.1)
    with pytest.raises(KeyError, match="mine"):
        tx.update(-w, tx.init(w), w, value_fn=value_fn)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_learning_rate": 0.0}, r"init_learning_rate must be a positive number.*got 0\.0"),
        ({"init_learning_rate": -1}, "got -1"),
        ({"init_learning_rate": np.nan}, "got nan"),
        ({"init_learning_rate": "0.1"}, "got '0.1'"),
        ({"init_learning_rate": True}, "got True"),
        ({"init_learning_rate": optax.constant_schedule(0.1)}, "init_learning_rate must be a positive number"),
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"every": 2.5}, r"every.*got 2\.5"),
        ({"every": None}, "every must be"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1\.0"),
        ({"smoothing": -0.1}, r"smoothing.*got -0\.1"),
        ({"smoothing": None}, "smoothing must be"),
        ({"smooth": "eta"}, r'smooth must be "learning_rate", "log" or "coefficients", got \'eta\''),
        ({"smooth": None}, "smooth must be"),
        ({"max_change": 1.0}, r"max_change must be greater than 1.*got 1\.0"),
        ({"max_change": np.inf}, "max_change.*None for no clamp, got inf"),
        ({"sigma": 0}, "sigma must be a positive number, got 0"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1.*got 0"),
        ({"num_steps": 10.0}, r"num_steps.*got 10\.0"),
        ({"decay": 0.5}, "decay must be an optax schedule"),
        ({"min_learning_rate": 0.0}, "min_learning_rate must be a positive number"),
        ({"max_learning_rate": -1.0}, "max_learning_rate must be a positive number"),
        ({"min_learning_rate": 1.0, "max_learning_rate": 0.1}, r"must not exceed max_learning_rate, got 1\.0 and 0\.1"),
        ({"value_fn": 3}, "value_fn must be a function of the parameters"),
        ({"probe": "exact"}, r"probe must be finite_difference\(\.\.\.\), exact\(\.\.\.\) or retrospective\(\)"),
        ({"probe": gen_optax.exact}, "probe must be"),
    ],
)
def test_bad_settings(settings, message):
    for make in (gen_optax.scale_by_gen, functools.partial(gen_optax.gen, optax.sgd(1.0)), gen_optax.gen_adamw):
        with pytest.raises(ValueError, match=message):
            make(**settings)


def test_numpy_numbers_are_numbers():
    gen_optax.scale_by_gen(np.float32(0.1), every=np.int64(2), smoothing=np.float64(0.5), num_steps=np.int32(7))


def test_a_step_of_length_zero_leaves_no_nan_in_info():
    """The probe of the second call judges a step that was not taken, and value has another rounding than the losses."""
    tx = gen_optax.scale_by_gen()
    w = jnp.ones(3)
    value = bowl(w) * (1 + 2e-7)
    update = jax.jit(functools.partial(tx.update, value_fn=bowl))
    _, state = update(-w, tx.init(w), w, value=value)
    _, state = update(-w, state._replace(applied_learning_rate=jnp.zeros_like(state.learning_rate)), w, value=value)
    assert state.info.num_probes == 1
    assert state.info.slope < 0
    assert state.info.optimal_learning_rate == 0


@pytest.mark.parametrize("name", KINDS)
def test_debug_nans_in_a_healthy_run(name):
    """jax_debug_nans hunts the user's NaN: it must not find one of ours, jitted or not."""
    tx = gen_optax.gen(optax.sgd(1.0, 0.9), probe=KINDS[name], every=2, num_steps=10)
    with jax.debug_nans(True):
        step = step_fn(tx, bowl)
        w = jnp.array([1.0, -2.0])
        state = tx.init(w)
        for _ in range(12):
            w, state = step(w, state)
        value, grad = jax.value_and_grad(bowl)(w)
        tx.update(grad, state, w, value=value, grad=grad, value_fn=bowl)
    assert bowl(w) < 4
