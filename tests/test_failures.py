"""What goes wrong in training: the parameters stay finite, the rate survives, the message helps."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KINDS, gen_state, jitted_update, settings_of, train

import gen_optax
from gen_optax import ProbeStatus

# Algorithm 1 with every kind of probe, and the default.
RULES = [*((name, "algorithm_1") for name in KINDS), ("retrospective", "balance")]


def rule(name, controller, learning_rate, **settings):
    chosen = getattr(gen_optax, controller)(init_learning_rate=learning_rate, **settings)
    return {"probe": KINDS[name], "controller": chosen}


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
    tx = optax.apply_if_finite(gen_optax.gen(optax.adam(1.0), **settings_of(name, 0.1), every=1), 5)
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


@pytest.mark.parametrize(("name", "controller"), RULES)
def test_what_is_not_finite_never_reaches_the_rate(name, controller):
    """Without any guard around it: whatever is broken, the rate, the averages and the next steps are not."""
    tx = gen_optax.scale_by_gen(**rule(name, controller, 0.1), every=1)
    w = jnp.array([1.0, -2.0])
    update = jitted_update(tx, lambda w, weight: jnp.sum(w**2) * weight)
    for bad in (np.nan, np.inf):
        for weight, u in ((bad, -w), (1.0, w * bad), (bad, w * bad)):
            _, state = update(u, tx.init(w), w, value=bowl(w) * weight, grad=2 * w * weight, weight=weight)
            assert state.learning_rate == np.float32(0.1)
            assert state.info.status in (ProbeStatus.NONE, ProbeStatus.NOT_FINITE)
            for _ in range(2):
                _, state = update(-w, state, w, value=bowl(w), grad=2 * w, weight=1.0)
                assert 0 < state.learning_rate < np.inf
            assert np.all(np.isfinite(jax.tree.leaves(state.controller)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_the_middle_leaves_the_averages(bad):
    """The default in its hold: a batch that is lost is not among those that confirm a gain, or do not."""
    tx = gen_optax.scale_by_gen(every=1)
    w = jnp.array([1.0, -2.0])
    update = jitted_update(tx, lambda w, weight: jnp.sum(w**2) * weight)
    state = tx.init(w)
    state = state._replace(learning_rate=jnp.float32(0.1), controller=state.controller._replace(age=jnp.int32(60)))
    for _ in range(3):
        updates, state = update(-w, state, w, value=bowl(w), weight=1.0)
        w = w + updates
    _, lost = update(-w, state, w, value=bowl(w) * bad, weight=bad)
    assert lost.info.status == ProbeStatus.NOT_FINITE
    assert lost.learning_rate == state.learning_rate
    jax.tree.map(np.testing.assert_array_equal, lost.controller.claims, state.controller.claims)
    assert np.all(np.isfinite(state.controller.claims))


CLIFF = 2.0


def cliff(w, depth=jnp.nan):
    """The bowl around 1, with a cliff at |w| = 2."""
    return jnp.where(jnp.abs(w) < CLIFF, jnp.sum((w - 1.0) ** 2), depth)


@pytest.mark.parametrize(
    ("probe", "depth"),
    [
        (KINDS["three points"], np.nan),
        (KINDS["three points"], np.inf),
        (KINDS["free slope"], np.nan),
        (KINDS["free slope"], np.inf),
        (gen_optax.finite_difference(independent=True), np.nan),
        (gen_optax.finite_difference(independent=True, batching="map"), np.inf),
    ],
)
def test_a_loss_that_breaks_only_at_the_candidate(probe, depth):
    """The rate falls, the step is withheld, the very next call probes although none is due, and training recovers."""
    if probe.direction.independent:
        controller = gen_optax.balance(init_learning_rate=30.0)
    else:
        controller = gen_optax.algorithm_1(init_learning_rate=30.0, smoothing=0.5)
    tx = gen_optax.gen(optax.sgd(1.0), controller=controller, probe=probe, every=2)
    step = step_fn(tx, functools.partial(cliff, depth=depth))
    w = jnp.zeros(())
    state = tx.init(w)
    if probe.direction.independent:  # in its hold
        held = gen_state(state).controller._replace(age=jnp.int32(50))
        state = (*state[:-1], gen_state(state)._replace(controller=held))
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
@pytest.mark.parametrize(
    ("base", "every"),
    [(optax.sgd(1.0), 1), (optax.apply_if_finite(optax.adam(1.0), 100), 4)],
    ids=["sgd", "adam"],
)
def test_a_step_over_the_cliff_is_taken_back(wall, base, every):
    """The retrospective probe sees it when it has happened: it goes back to where the loss was finite."""
    tx = gen_optax.gen(base, **rule("retrospective", "algorithm_1", 30.0), every=every)
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
    tx = gen_optax.scale_by_gen(controller=gen_optax.balance(init_learning_rate=1.0))

    def loss_fn(w):
        return jnp.where(w[0] > 1, jnp.nan, (w[0] - 3) ** 2)

    update = jax.jit(functools.partial(tx.update, jnp.array([0.3]), value_fn=loss_fn))
    w = jnp.zeros(1)
    state = tx.init(w)
    found = state.controller._replace(age=jnp.int32(0))  # the rate is taken as given
    state = state._replace(count=jnp.int32(1), controller=found)
    lost = 0
    for _ in range(200):
        updates, state = update(state, w)
        w = w + updates
        lost += bool(jnp.isnan(loss_fn(w)))
    assert lost < 50
    assert not jnp.isnan(loss_fn(w))


def test_parameters_that_are_lost_do_not_take_the_rate_along():
    """A NaN batch without any guard makes the parameters NaN, as it does in optax; the rate is not to blame."""
    tx = gen_optax.gen(optax.sgd(1.0), **rule("retrospective", "balance", 0.1), every=1)
    step = step_fn(tx, lambda w, weight: jnp.sum(w**2) * weight)
    w = jnp.ones(2)
    state = tx.init(w)
    for weight in (1.0, np.nan, 1.0, 1.0):
        w, state = step(w, state, weight)
    found = gen_state(state)
    assert 0 < found.learning_rate < np.inf
    assert gen_state(state).info.status == ProbeStatus.NOT_FINITE


@pytest.mark.parametrize(("name", "controller"), RULES)
def test_zero_gradients(name, controller):
    tx = gen_optax.gen(optax.adam(1.0), **rule(name, controller, 0.1), every=1)
    w, state, _, _ = train(tx, jnp.array([1.0, 2.0]), lambda w: 0.0 * jnp.sum(w) + 3.0, 5)
    assert gen_state(state).info.status == ProbeStatus.BELOW_ROUNDING
    assert gen_state(state).learning_rate == np.float32(0.1)
    np.testing.assert_array_equal(w, [1.0, 2.0])


@functools.cache
def trained_on_a_form(name, controller, **options):
    """Six steps on `form @ (w0^2, w1^2, w0 w1, w0 + w1, 1)` at a rate of 0.01, compiled once for all forms."""
    tx = gen_optax.gen(optax.sgd(1.0), **rule(name, controller, 0.01), every=1, **options)

    def loss_fn(w, form):
        return form @ jnp.array([w[0] ** 2, w[1] ** 2, w[0] * w[1], jnp.sum(w), 1.0])

    return jax.jit(lambda start, form: train(tx, start, loss_fn, 6, form=form))


@pytest.mark.parametrize(("name", "controller"), RULES)
@pytest.mark.parametrize(
    ("form", "start", "status"),
    [
        ([1.0, -1.0, 0.0, 0.0, 0.0], [0.1, 1.0], "NO_CURVATURE"),  # a saddle, down the ridge
        ([-1.0, -1.0, 0.0, 0.0, 1.0], [0.1, 1.0], "NO_CURVATURE"),  # a dome
        ([0.0, 0.0, 0.0, 1.0, 10.0], [0.1, 1.0], "NO_CURVATURE"),  # a plane
        ([0.0, 0.0, 1.0, 0.0, 1.0], [1.0, 1.0], "ACCEPTED"),
    ],
    ids=["saddle", "dome", "plane", "valley"],
)
def test_saddles_domes_and_planes(name, controller, form, start, status):
    """No minimum in sight: the rate of Algorithm 1 stays; the default may raise it, in bounds."""
    run = trained_on_a_form(name, controller, max_learning_rate=0.05)
    w, state, _, states = run(jnp.array(start), jnp.array(form))
    found = gen_state(states).info.status[2:]
    # A plane's curvature is pure rounding, which may be too small for the finite difference to tell from none.
    assert all(ProbeStatus(int(s)).name == status for s in found)
    assert np.all(np.isfinite(w))
    if status == "NO_CURVATURE" and controller == "algorithm_1":
        assert state[-1].learning_rate == np.float32(0.01)
    assert 0 < state[-1].learning_rate <= np.float32(0.05)


@pytest.mark.parametrize(("name", "controller"), RULES)
def test_ascent_directions(name, controller):
    """Updates with the wrong sign: not believed, never a negative rate."""
    tx = gen_optax.gen(optax.sgd(-1.0), **rule(name, controller, 0.01), every=1)
    w, state, _, states = train(tx, jnp.ones(2), bowl, 6)
    assert all(gen_state(states).info.status[1:] == ProbeStatus.ASCENT)
    assert 0 < gen_state(state).learning_rate <= np.float32(0.01)
    if controller == "algorithm_1":
        assert gen_state(state).learning_rate == np.float32(0.01)
    assert np.all(np.isfinite(w))


@functools.cache
def trained_in_a_unit(name, rate):
    tx = optax.chain(optax.sign_sgd(1.0), gen_optax.scale_by_gen(**settings_of(name, rate), every=1, num_steps=60))

    def loss_fn(w, unit):
        return unit * (bowl(w) + 1.0)

    return jax.jit(lambda unit: train(tx, jnp.array([1.0, -1.0]), loss_fn, 60, grad=True, unit=unit))


@pytest.mark.parametrize(("name", "rate"), [*((name, 0.01) for name in KINDS), ("retrospective", None)])
@pytest.mark.parametrize("log_unit", [-30, 30])
def test_losses_of_1e30_and_1e_minus_30(name, rate, log_unit):
    """From a known rate that is ten times too small, and with none at all, on a loss in any unit."""
    w, state, losses, _ = trained_in_a_unit(name, rate)(jnp.float32(10.0**log_unit))
    assert np.all(np.isfinite(losses))
    assert np.all(np.isfinite(w))
    assert gen_state(state).info.num_accepted > 0
    assert bowl(w) < 0.5


@hypothesis.given(
    losses=st.lists(st.floats(width=32, allow_subnormal=False), min_size=3, max_size=3),
    value=st.floats(width=32),
    log_rate=st.floats(-12, 6),
    controller=st.sampled_from(["algorithm_1", "clamped", "balance"]),
    age=st.sampled_from([0, 20, 60]),
)
@hypothesis.settings(max_examples=200)
def test_any_losses_at_the_candidates(losses, value, log_rate, controller, age):
    """NaN, infinities, both ends of float32: the rate stays finite and positive."""
    state = candidate_losses(controller)(
        jnp.array(losses, jnp.float32), jnp.float32(value), jnp.float32(10.0**log_rate), jnp.int32(age)
    )
    assert 0 < state.learning_rate < np.inf
    assert 0 <= state.applied_learning_rate < np.inf
    assert not state.info.accepted or np.all(np.isfinite([losses[0], losses[2], value]))
    remembered = np.array(jax.tree.leaves(state.controller))
    assert np.all(np.isfinite(remembered)) or (not np.isfinite(state.info.value) and not np.any(np.isnan(remembered)))


@functools.cache
def candidate_losses(controller):
    make = {
        "algorithm_1": functools.partial(gen_optax.algorithm_1, smoothing=0.0),
        "clamped": functools.partial(gen_optax.algorithm_1, smoothing=0.0, clamp=2.0),
        "balance": gen_optax.balance,
    }[controller]

    def run(losses, value, rate, age):
        def value_fn(w):
            return jnp.where(w < -0.5, losses[0], jnp.where(w > 0.5, losses[2], losses[1]))

        probe = gen_optax.finite_difference(independent=controller == "balance")
        tx = gen_optax.scale_by_gen(controller=make(init_learning_rate=rate), probe=probe, every=1)
        w = jnp.zeros(())
        state = tx.init(w)
        if controller == "balance":
            state = state._replace(controller=state.controller._replace(age=age))
        return tx.update(1 / rate, state, w, value_fn=value_fn, value=value)[1]

    return jax.jit(run)


@pytest.mark.parametrize(
    ("name", "rate", "integers"),
    [
        ("three points", 0.1, "zeros"),
        ("three points", 0.1, "float0"),
        ("free slope", 0.1, "float0"),
        ("exact", 0.1, "zeros"),
        ("exact", 0.1, "float0"),
        ("retrospective", None, "zeros"),
        ("retrospective", 0.1, "float0"),
    ],
)
def test_integer_empty_and_none_leaves(name, rate, integers):
    """Left alone, whatever the gradient convention: zeros, or float0 from allow_int."""
    params = {"w": jnp.array([1.0, -1.0]), "n": jnp.array([3, 4]), "empty": jnp.zeros((0, 2)), "none": None}

    def loss_fn(p):
        return jnp.sum(p["w"] ** 2) * jnp.sum(p["n"]) / 7 + jnp.sum(p["empty"])

    tx = gen_optax.scale_by_gen(**settings_of(name, rate), every=1)

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
    tx = gen_optax.scale_by_gen(**settings_of(name), every=1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = jitted_update(tx, lambda p: jnp.float32(3.0))
    state = tx.init(params)
    for _ in range(2):
        updates, state = update(zeros, state, params, value=jnp.float32(3.0), grad=zeros)
    jax.tree.map(np.testing.assert_array_equal, updates, zeros)
    assert state.learning_rate == (0 if name == "retrospective" else np.float32(1e-3))
    assert state.info.status == ProbeStatus.BELOW_ROUNDING


@pytest.mark.parametrize(
    ("name", "rate", "value"),
    [
        ("three points", 0.01, True),
        ("three points", 0.01, False),
        ("exact", 0.01, True),
        ("retrospective", 0.01, False),
        ("retrospective", None, True),
    ],
)
def test_complex_parameters(name, rate, value):
    """The conjugate goes into the base, as ever in JAX: b and A are those of the real and imaginary parts."""
    centre = jnp.array([1.0 + 2.0j, -1.0j])

    def loss_fn(w):
        return jnp.sum(jnp.abs(w - centre) ** 2 * jnp.array([1.0, 3.0]))

    tx = gen_optax.gen(optax.sgd(1.0), **settings_of(name, rate), every=1)

    @jax.jit
    def step(w, state):
        loss, grad = jax.value_and_grad(loss_fn)(w)
        extra = {"value": loss} if value else {}
        updates, state = tx.update(jnp.conj(grad), state, w, value_fn=loss_fn, **extra)
        return optax.apply_updates(w, updates), state

    w = jnp.zeros(2, jnp.complex64)
    state = tx.init(w)
    w1, state = step(w, state)
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
    tx = gen_optax.scale_by_gen(**settings_of(name))
    with pytest.raises(ValueError, match=message):
        jitted_update(tx, loss)(-w, tx.init(w), w, grad=w)


def test_a_value_that_is_no_real_scalar():
    w = jnp.ones(3)
    tx = gen_optax.scale_by_gen()
    with pytest.raises(ValueError, match=r"value must be a real scalar.*shape \(3,\)"):
        tx.update(-w, tx.init(w), w, value=w, value_fn=bowl)


def test_a_value_with_aux_says_what_to_pass():
    tx = gen_optax.scale_by_gen()
    with pytest.raises(ValueError, match=r"value must be a real scalar loss, got a tuple. .* pass loss alone"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), value=(1.0, {"accuracy": 1.0}), value_fn=bowl)


def test_value_fn_may_name_value_and_grad():
    def value_fn(w, value, grad):
        return bowl(w) + 0 * value + 0 * jnp.sum(grad)

    tx = gen_optax.scale_by_gen(every=1)
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
    tx = gen_optax.scale_by_gen()
    with pytest.raises(KeyError, match="mine"):
        tx.update(-w, tx.init(w), w, value_fn=value_fn)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every must be a whole number of at least 1, got 0"),
        ({"every": 2.5}, r"every.*got 2\.5"),
        ({"every": True}, "every.*got True"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1.*got 0"),
        ({"num_steps": 10.0}, r"num_steps.*got 10\.0"),
        ({"decay": 0.5}, "decay must be an optax schedule"),
        ({"min_learning_rate": 0.0}, "min_learning_rate must be a positive number"),
        ({"max_learning_rate": -1.0}, "max_learning_rate must be a positive number"),
        ({"max_learning_rate": np.inf}, "max_learning_rate must be a positive number, got inf"),
        ({"min_learning_rate": 1.0, "max_learning_rate": 0.1}, r"must not exceed max_learning_rate, got 1\.0 and 0\.1"),
        ({"value_fn": 3}, "value_fn must be a function of the parameters"),
        ({"probe": "exact"}, r"probe must be a gen_optax\.Probe such as .*, got 'exact'"),
        ({"probe": gen_optax.exact}, r"probe must be a gen_optax\.Probe such as"),
        ({"probe": gen_optax.balance()}, r"probe must be a gen_optax\.Probe such as .*, got Balance"),
        ({"controller": "balance"}, r"controller must be a gen_optax\.Controller such as .*, got 'balance'"),
        ({"controller": gen_optax.balance}, r"controller must be a gen_optax\.Controller such as"),
        ({"controller": 1e-3}, r"controller must be a gen_optax\.Controller such as .*, got 0\.001"),
        ({"probe": gen_optax.finite_difference()}, r"balance cannot use .*independent=True.*algorithm_1\(\)"),
        ({"probe": gen_optax.exact(), "num_steps": 9}, r"balance cannot use .*independent=True.*algorithm_1\(\)"),
    ],
)
def test_bad_settings(settings, message):
    for make in (gen_optax.scale_by_gen, functools.partial(gen_optax.gen, optax.sgd(1.0)), gen_optax.gen_adamw):
        with pytest.raises(ValueError, match=message):
            make(**settings)


@pytest.mark.parametrize("make", [gen_optax.algorithm_1, gen_optax.balance])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_learning_rate": 0.0}, r"init_learning_rate must be a positive number.*got 0\.0"),
        ({"init_learning_rate": -1}, "got -1"),
        ({"init_learning_rate": np.nan}, "got nan"),
        ({"init_learning_rate": "0.1"}, "got '0.1'"),
        ({"init_learning_rate": True}, "got True"),
        ({"init_learning_rate": optax.constant_schedule(0.1)}, "init_learning_rate must be a positive number"),
    ],
)
def test_bad_settings_of_both_controllers(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_learning_rate": None}, "init_learning_rate must be a positive number, got None"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\), got 1\.0"),
        ({"smoothing": -0.1}, r"smoothing.*got -0\.1"),
        ({"smoothing": None}, "smoothing must be"),
        ({"clamp": 1.0}, r"clamp must be greater than 1, or None for no clamp, got 1\.0"),
        ({"clamp": np.inf}, "clamp.*got inf"),
    ],
)
def test_bad_settings_of_algorithm_1(settings, message):
    with pytest.raises(ValueError, match=message):
        gen_optax.algorithm_1(**settings)


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (
            ["sigma", "search_sigma", "memory", "first_fraction"],
            [0, -1.0],
            "a positive number",
        ),
        (["confirm_errors", "alignment"], [np.nan, "1"], "a number"),
        (["search_probes"], [-1, 2.5, None], "a whole number"),
        (["max_change"], [1.0, 0.5, None, np.inf], "greater than 1"),
    ],
)
def test_bad_settings_of_balance(names, values, message):
    for name in names:
        for value in values:
            with pytest.raises(ValueError, match=f"{name} must be {message}.*, got {value!r}"):
                gen_optax.balance(**{name: value})


def test_there_may_be_no_search():
    gen_optax.balance(search_probes=0)


def test_numpy_numbers_are_numbers():
    gen_optax.scale_by_gen(every=np.int64(2), num_steps=np.int32(7), max_learning_rate=np.float32(0.1))
    gen_optax.algorithm_1(init_learning_rate=np.float32(0.1), smoothing=np.float64(0.5), clamp=np.float32(2))
    gen_optax.balance(init_learning_rate=np.float32(0.1), search_probes=np.int64(3), sigma=np.float64(1.5))


def test_a_step_of_length_zero_leaves_no_nan_in_info():
    """The probe of the second call judges a step that was not taken, and value has another rounding than the losses."""
    tx = gen_optax.scale_by_gen()
    w = jnp.ones(3)
    value = bowl(w) * (1 + 2e-7)
    update = jax.jit(functools.partial(tx.update, value_fn=bowl))
    _, state = update(-w, tx.init(w), w, value=value)
    _, state = update(-w, state._replace(applied_learning_rate=jnp.zeros_like(state.learning_rate)), w, value=value)
    assert state.info.num_probes == 1
    assert state.info.optimal_learning_rate == 0
    assert all(np.all(np.isfinite(x)) for x in state.info)


@pytest.mark.parametrize("name", KINDS)
def test_debug_nans_in_a_healthy_run(name):
    """jax_debug_nans hunts the user's NaN: it must not find one of ours, jitted or not."""
    tx = gen_optax.gen(optax.sgd(1.0, 0.9), **settings_of(name), every=2, num_steps=10)
    with jax.debug_nans(True):
        step = step_fn(tx, bowl)
        w = jnp.array([1.0, -2.0])
        state = tx.init(w)
        for _ in range(12):
            w, state = step(w, state)
        value, grad = jax.value_and_grad(bowl)(w)
        tx.update(grad, state, w, value=value, grad=grad, value_fn=bowl)
    assert bowl(w) < 4
