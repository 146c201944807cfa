"""Where the first learning rate comes from, and the climb after it."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import random_quadratic

import gen_optax

AHEAD = gen_optax.exact(independent=True)


def train(tx, loss_fn, params, steps):
    """The parameters after training, and the learning rate of every step."""
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn)
        return optax.apply_updates(params, updates), state

    rates = []
    for _ in range(steps):
        params, state = step(params, state)
        rates.append(float(optax.tree.get(state, "learning_rate")))
    return params, np.array(rates), state


def first_rate(loss_fn, w, scale=1.0, **options):
    """What the first call finds along the step from `w` towards 0."""
    tx = gen_optax.scale_by_gen(**options)
    _, state = jax.jit(lambda w: tx.update(-scale * w, tx.init(w), w, value_fn=loss_fn))(w)
    return optax.tree.get(state, "learning_rate")


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 0.7, 1.0, 1.7, 3.0, 1e12])
def test_starts_at_a_part_of_the_rate_that_gains_half_of_the_best(scale):
    """On L = |w|^2 / 2 along -scale w the best rate is 1 / scale, half of it gained at 0.29 of that; a grid of 4."""
    rate = first_rate(lambda w: jnp.sum(w**2) / 2, jnp.ones(4), scale)
    assert 0.03 * 0.29 <= rate * scale <= 0.03 * 0.29 * 4 * 1.01


@pytest.mark.parametrize(
    ("base", "value_fn", "status"),
    [
        (optax.scale_by_adam(), lambda w: jnp.sum(w**2), "ASCENT"),  # without its sign
        (optax.adam(1.0), lambda w: 1.0 + 0 * jnp.sum(w), "BELOW_ROUNDING"),
        (optax.adam(1.0), lambda w: jnp.inf + 0 * jnp.sum(w), "NOT_FINITE"),
        (optax.scale(jnp.nan), lambda w: jnp.sum(w**2), "NOT_FINITE"),
        (optax.adam(1.0), lambda w: jnp.sum(w**2), "NONE"),
    ],
)
@pytest.mark.parametrize("given", [None, 1e-3])
def test_the_status_says_why_no_first_rate_was_found(base, value_fn, status, given):
    tx, w = gen_optax.gen(base, controller=gen_optax.balance(init_learning_rate=given)), jnp.ones(3)
    _, state = jax.jit(lambda w: tx.update(2 * w, tx.init(w), w, value=value_fn(w), value_fn=value_fn))(w)
    warned = pytest.warns(UserWarning, match="uphill") if status == "ASCENT" else contextlib.nullcontext()
    with warned:
        log = gen_optax.metrics(state)
    assert gen_optax.ProbeStatus(int(log["status"])).name == status
    assert log["num_probes"] == 0
    assert (log["learning_rate"] > 0) == (status == "NONE" or given is not None)


def test_python_numbers_are_parameters():
    tx = gen_optax.gen_sgd()
    w, state = 0.0, tx.init(0.0)
    for _ in range(2):
        updates, state = tx.update(2 * (w - 3), state, w, value=(w - 3) ** 2, value_fn=lambda w: (w - 3) ** 2)
        w = float(optax.apply_updates(w, updates))
    assert w > 0


def test_a_ripple_does_not_hide_the_valley():
    """Along the step the loss first falls, then rises, and is lowest a thousand times farther on."""

    def loss_fn(w):
        return jnp.sum(w**2) / 2 + 0.2 * jnp.sum(jnp.cos(3e3 * w))

    assert 0.01 < first_rate(loss_fn, jnp.ones(4)) < 0.04


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("finest", [1e-5, 1e-4])
def test_a_search_begins_above_the_bumps_of_a_rough_line(seed, size, finest):
    """A valley of depth 1 / 2, a step of this size away, beneath ripples of a tenth of that at every scale below."""
    scales = np.geomspace(finest, 0.01, 9)
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, scales.size)
    phases[0] = np.pi  # at the start the finest goes down

    def loss_fn(w):
        x = w[0] / size
        return (x - 1) ** 2 / 2 + 0.03 * jnp.sum(jnp.sin(x / scales + phases))

    tx, w = gen_optax.scale_by_gen(), jnp.zeros(2)
    _, state = jax.jit(lambda w: tx.update(jnp.full(2, size), tx.init(w), w, value_fn=loss_fn))(w)
    assert 0.03 < state.learning_rate < 0.6


@pytest.mark.parametrize(("power", "far"), [(4, 10.0), (4, 20.0), (4, 25.0), (4, 32.0), (2, 1e2)])
def test_a_well_on_the_way_is_no_roughness(power, far):
    """Smooth wells, one of them beyond the first: the search begins at a small part of the deeper one, as ever."""

    def loss_fn(w):
        x = 1 - w[0]
        return 1 - 0.1 * x * jnp.exp(1 - x) - (x / far) ** power * jnp.exp(power * (1 - x / far))

    assert first_rate(loss_fn, jnp.ones(1)) < 0.05 * far


def test_no_rate_is_tried_beyond_the_first_that_makes_the_loss_nan():
    """The loss is a valley, then NaN, then a deeper valley that no step should reach."""

    def loss_fn(w):
        x = 1 - w[0]  # the step as far as it was tried
        return jnp.where(x < 0.1, -x, jnp.where(x < 0.5, jnp.nan, -10.0))

    assert 0 < first_rate(loss_fn, jnp.ones(1)) <= 0.03 * 0.1


def test_climbs_to_the_edge_without_passing_the_minimiser():
    """Without noise the batches agree, and the rate comes to rest at b / A = 1."""
    _, rates, _ = train(gen_optax.gen_sgd(), lambda w: jnp.sum(w**2) / 2 + 1.0, jnp.ones(4), 50)
    assert rates.max() < 1.05
    assert rates[-1] > 0.2


def test_the_climb_goes_on_where_rounding_hides_the_curvature():
    """The loss is 1 + tiny changes: slopes are seen, curvatures are not, and the rate still rises."""
    scale = 1e-3

    def loss_fn(w):
        return 1.0 + scale * jnp.sum((w - 1.0) ** 2)

    params, rates, _ = train(gen_optax.gen_sgd(), loss_fn, jnp.zeros(4), 300)
    assert rates[-1] > 10 * rates[0]
    np.testing.assert_allclose(params, 1.0, atol=0.1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_decrease_hidden_in_coarse_rounding_is_no_standstill(dtype):
    """The whole of the loss that can be gained is less than the rounding error of the loss."""
    x = jax.random.normal(jax.random.key(0), (64, 8)).astype(dtype)
    y = x @ jax.random.normal(jax.random.key(1), (8,)).astype(dtype)

    def loss_fn(w):
        return jnp.mean((x @ w - y).astype(jnp.float32) ** 2)

    params, rates, _ = train(gen_optax.gen_adam(), lambda w: 2e4 + loss_fn(w), jnp.zeros(8, dtype), 300)
    assert (rates == rates[0]).all()  # nothing more is learned
    assert rates[0] > 0
    assert loss_fn(params) < 0.5 * loss_fn(jnp.zeros(8, dtype))


def test_an_unknown_rate_is_looked_for_again_after_a_zero_gradient():
    tx = gen_optax.gen_sgd()
    w = jnp.ones(3)
    state = tx.init(w)

    @jax.jit
    def step(w, state, grads):
        updates, state = tx.update(grads, state, w, value_fn=lambda w: jnp.sum(w**2))
        return optax.apply_updates(w, updates), state

    w1, state = step(w, state, jnp.zeros(3))
    assert optax.tree.get(state, "learning_rate") == 0
    np.testing.assert_array_equal(w1, w)
    _, state = step(w1, state, 2 * w1)
    assert optax.tree.get(state, "learning_rate") > 0


@pytest.mark.parametrize("probe", [gen_optax.retrospective(), AHEAD], ids=["looks back", "looks ahead"])
def test_a_rate_that_is_found_late_is_searched_for_as_long(probe):
    tx = gen_optax.gen_sgd(probe=probe, every=1)

    def run(dead, calls=30):
        @jax.jit
        def step(w, state, on):
            value, grads = jax.value_and_grad(lambda w: on * bowl(w))(w)
            updates, state = tx.update(grads, state, w, value=value, value_fn=lambda w: on * bowl(w))
            return optax.apply_updates(w, updates), state

        w = jnp.ones(4)
        state = tx.init(w)
        for _ in range(dead):
            w, state = step(w, state, 0.0)
        assert optax.tree.get(state, "num_probes") == 0
        for _ in range(calls):
            w, state = step(w, state, 1.0)
        return w, optax.tree.get(state, "learning_rate")

    (late, late_rate), (_, early_rate) = run(60), run(0)
    assert early_rate > 0.1
    assert late_rate > early_rate / 2
    assert bowl(late) < bowl(jnp.ones(4)) / 100


def bowl(w):
    return jnp.sum(w**2) / 2


@pytest.mark.parametrize(
    ("given", "least", "most", "probe"),
    [
        (1e-8, 0.0014, 0.0029, None),  # a tenth of where the search for an unknown rate begins
        (1e-3, 0.0014, 0.0029, AHEAD),  # the climb from there would take too long
        (0.004, 0.004, 0.004, None),
        (0.004, 0.004, 0.004, AHEAD),
        (0.01, 0.01, 0.01, None),
        (0.1, 0.014, 0.029, AHEAD),  # what the first step bears may be too much with momentum
        (1e2, 0.014, 0.029, None),
        (1e30, 0.014, 0.029, None),  # the loss is infinite there
        (1e30, 0.014, 0.029, AHEAD),
    ],
)
def test_a_given_rate_lowers_where_the_search_begins_by_a_factor_of_ten_at_most(given, least, most, probe):
    """On L = |w|^2 / 2 along -w the best rate is 1, and doubling meets it within a factor of sqrt(2)."""
    rate = first_rate(bowl, jnp.ones(4), controller=gen_optax.balance(init_learning_rate=given), probe=probe)
    assert least * 0.99 <= rate <= most * 1.01


def test_where_a_search_begins_is_a_setting():
    rate = first_rate(bowl, jnp.ones(4), controller=gen_optax.balance(first_fraction=0.1))
    np.testing.assert_allclose(rate, 0.1 / 0.03 * first_rate(bowl, jnp.ones(4)), rtol=1e-5)


@pytest.mark.parametrize("probe", [gen_optax.retrospective(), AHEAD], ids=["looks back", "looks ahead"])
def test_from_a_lower_rate_the_search_goes_on_at_each_call(probe):
    """But for the first, which tries rates and judges no step yet."""
    tx = gen_optax.gen_sgd(controller=gen_optax.balance(init_learning_rate=0.01), probe=probe)
    _, rates, state = train(tx, bowl, jnp.ones(4), 15)
    assert rates[0] == np.float32(0.01)
    assert rates[-1] > 0.1
    assert optax.tree.get(state, "num_probes") == 14


def test_from_a_higher_rate_training_is_that_from_an_unknown_one():
    """To the bit, of one program for all of them."""

    @jax.jit
    def trained(given):
        tx = gen_optax.gen_sgd(controller=gen_optax.balance(init_learning_rate=given), num_steps=100)

        def step(carry, _):
            w, state = carry
            value, grads = jax.value_and_grad(bowl)(w)
            updates, state = tx.update(grads, state, w, value=value, value_fn=bowl)
            w = optax.apply_updates(w, updates)
            return (w, state), (w, optax.tree.get(state, "learning_rate"), optax.tree.get(state, "num_probes"))

        w = jnp.ones(4)
        return jax.lax.scan(step, (w, tx.init(w)), length=70)[1]

    unknown = trained(jnp.float32(0.0))
    for given in (0.1, 1e2):
        jax.tree.map(np.testing.assert_array_equal, trained(jnp.float32(given)), unknown)
    assert unknown[2][-1] > 50
    _, rates, _ = train(gen_optax.gen_sgd(num_steps=100), bowl, jnp.ones(4), 70)
    np.testing.assert_allclose(unknown[1], rates, rtol=1e-5)


def test_a_given_rate_is_kept_where_the_first_step_shows_nothing():
    """No step, or no loss to go by: nothing speaks against it, and it is not searched for."""
    given = gen_optax.balance(init_learning_rate=1e-3)
    assert first_rate(lambda w: 0 * jnp.sum(w), jnp.ones(4), controller=given) == np.float32(1e-3)
    _, rates, state = train(gen_optax.gen_sgd(controller=given), lambda w: 0 * jnp.sum(w), jnp.ones(4), 20)
    assert set(rates) == {np.float32(1e-3)}
    assert optax.tree.get(state, "num_probes") == 1


@pytest.mark.parametrize("log_scale", [-12, -6, 0, 6, 12])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_at_every_scale(log_scale, offset):
    """A fiftieth of the minimiser, although gradients (and so the right rates) span 24 orders of magnitude.

    Of rates that double the best one for a parabola is between 2/3 and 4/3 of its minimiser.
    """
    problem = random_quadratic(0)
    w = problem.centre + 1.0
    u = -problem.gradient(w) * 10.0**log_scale
    slope, curvature = problem.slope_and_curvature(w, u)
    rate = of_a_quadratic(*(jnp.asarray(x, jnp.float32) for x in (problem.hessian, problem.centre, offset, w, u)))
    assert 0.02 * 2 / 3 * 0.99 < rate / (slope / curvature) <= 0.02 * 4 / 3 * 1.01


@jax.jit
def of_a_quadratic(hessian, centre, offset, w, u):
    def value_fn(w):
        return 0.5 * (w - centre) @ (hessian @ (w - centre)) + offset

    tx = gen_optax.scale_by_gen(probe=AHEAD)
    return tx.update(u, tx.init(w), w, value_fn=value_fn)[1].learning_rate


@pytest.mark.parametrize(
    ("probe", "direction"),
    [
        (gen_optax.retrospective(), "zero"),
        (gen_optax.retrospective(), "ascent"),
        (gen_optax.retrospective(), "NaN"),
        (gen_optax.finite_difference(independent=True), "ascent"),
        (AHEAD, "NaN"),
    ],
)
def test_waits_for_a_direction_that_descends(probe, direction):
    """No step before a rate is known, the search at each call until then, and training after it."""
    w = jnp.array([1.0, -2.0])
    tx = gen_optax.scale_by_gen(probe=probe)
    update = jax.jit(
        lambda u, s, w: tx.update(u, s, w, value=jnp.sum(w**2), grad=2 * w, value_fn=lambda w: jnp.sum(w**2))
    )
    state = tx.init(w)
    bad = {"zero": 0 * w, "ascent": w, "NaN": w * jnp.nan}[direction]
    for _ in range(3):
        updates, state = update(bad, state, w)
        assert state.learning_rate == 0
        np.testing.assert_array_equal(updates, 0)
    for _ in range(100):
        updates, state = update(-2 * w, state, w)
        w = optax.apply_updates(w, updates)
    assert jnp.sum(w**2) < 0.5
    assert 0 < state.learning_rate < 2


@pytest.mark.parametrize("bounds", [{"max_learning_rate": 1e-6}, {"min_learning_rate": 0.9}])
def test_respects_bounds(bounds):
    (bound,) = bounds.values()
    assert first_rate(lambda w: jnp.sum(w**2), jnp.ones(2), **bounds) == np.float32(bound)


def test_survives_a_cliff():
    """A loss that is NaN beyond a tenth of the minimiser: the first rate stays on this side."""
    rate = first_rate(lambda w: jnp.where(jnp.abs(w - 1) < 0.1, jnp.sum(w**2), jnp.nan), jnp.ones(()))
    assert 0 < rate < 0.02 * 0.1


def test_a_given_rate_is_searched_for_after_a_first_loss_that_is_nan():
    """Such a batch shows nothing of the rate: no step is taken, and the next call tries again."""
    tx = gen_optax.gen_sgd(controller=gen_optax.balance(init_learning_rate=10.0))
    w = jnp.zeros(3)
    state = tx.init(w)
    for call in range(100):
        factor = jnp.nan if call == 0 else 1.0
        value_fn = lambda w, factor=factor: factor * jnp.sum((w - 3.0) ** 2)  # noqa: E731
        updates, state = tx.update(2 * (w - 3.0), state, w, value=value_fn(w), value_fn=value_fn)
        w = optax.apply_updates(w, updates)
        assert call > 0 or np.array_equal(updates, jnp.zeros(3))
    np.testing.assert_allclose(w, 3.0, atol=0.1)


@pytest.mark.parametrize("base", [optax.sgd(1.0), optax.adam(1.0)], ids=["sgd", "adam"])
def test_a_loss_that_is_zero_at_first(base):
    """As of a critic with a head of zeros: every rate changes it beyond rounding, and the right one is far away."""
    x = jax.random.normal(jax.random.key(0), (2, 64, 5)) + jnp.array([0.0, 1.0])[:, None, None]

    def loss_fn(params, offset):
        one, other = jnp.tanh(x @ params["w"]) @ params["head"]
        return jnp.mean(one) - jnp.mean(other) + jnp.sum(params["head"] ** 2) / 20 + offset

    params = {"w": jax.random.normal(jax.random.key(1), (5, 8)), "head": jnp.zeros(8)}
    assert loss_fn(params, 0.0) == 0
    ends = {}
    for offset in (0.0, 1.0):
        tx, now = gen_optax.gen(base), params
        state = tx.init(now)

        @jax.jit
        def step(now, state, tx=tx, offset=offset):
            value, grads = jax.value_and_grad(loss_fn)(now, offset)
            updates, state = tx.update(grads, state, now, value=value, value_fn=lambda p: loss_fn(p, offset))
            return optax.apply_updates(now, updates), state

        for _ in range(100):
            now, state = step(now, state)
        ends[offset] = float(loss_fn(now, 0.0))
        assert not gen_optax.metrics(state)["notices"]
    assert ends[1.0] < -1
    assert ends[0.0] < 0.1 * ends[1.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("start", [0.0, 1e-9, -1e-9, 1e-6, 1.0])
@pytest.mark.parametrize("exponent", [4, 8, 11, 14, 20])
def test_the_rates_reach_from_any_loss_to_any_minimiser(start, exponent, dtype):
    """A parabola whose minimiser is 2^-exponent: long steps pass it, and come back."""
    with jax.enable_x64(dtype == np.float64):
        tx, w = gen_optax.scale_by_gen(), jnp.zeros(2, dtype)

        def loss_fn(w):
            a = w[0] * 2.0**exponent
            return start - a + a**2 / 2

        rate = float(tx.update(jnp.ones(2, dtype), tx.init(w), w, value_fn=loss_fn)[1].learning_rate) * 2.0**exponent
    assert 0.03 * 0.29 <= rate <= 0.03 * 0.29 * 4 * 1.01


@pytest.mark.parametrize("base", [optax.sgd(1.0), optax.adam(1.0)], ids=["sgd", "adam"])
def test_float64_trains_as_float32_does(base):
    """Where the loss changes by no more than is seen in float64, a rate is far from one that trains."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8))
    y, first = x @ np.arange(8), {}
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            data, target = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
            loss_fn = lambda w, data=data, target=target: jnp.mean((data @ w - target) ** 2)  # noqa: E731
            w, rates, _ = train(gen_optax.gen(base), loss_fn, jnp.zeros(8, dtype), 300)
            assert w.dtype == dtype
            assert loss_fn(w) < 1e-6 * loss_fn(0 * w)
        first[dtype] = rates[0]
    assert 1 / 4.01 < first[np.float64] / first[np.float32] < 4.01  # next to each other among the rates, at most


@pytest.mark.parametrize(
    ("x64", "dtype", "most"), [(False, np.float32, 23), (True, np.float32, 23), (True, np.float64, 37)]
)
def test_float64_alone_tries_more_rates(x64, dtype, most):
    with jax.enable_x64(x64):
        tx, w, evaluated = gen_optax.scale_by_gen(), jnp.zeros(3, dtype), []

        def loss_fn(w):
            if not isinstance(w, jax.core.Tracer):
                evaluated.append(w)
            return jnp.sum((w - 1) ** 2)

        tx.update(jnp.ones(3, dtype), tx.init(w), w, value_fn=loss_fn)
        assert len(evaluated) == most
        assert most <= gen_optax.balance().num_start_rates == (37 if x64 else 23)
