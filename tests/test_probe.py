"""The probes: b h and A h^2 against float64 NumPy, at every learning rate and loss scale."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    PROBES,
    Quadratic,
    flat,
    gen_state,
    greedy,
    jitted_update,
    network,
    network_loss,
    numpy_network_loss,
    one_probe,
    random_quadratic,
)

import gen_optax
from gen_optax import ProbeStatus

LOOKING_AHEAD = {name: probe for name, probe in PROBES.items() if name != "retrospective"}


@functools.cache
def quadratic_probe(probe, known):
    """A jitted probe at a known rate of a quadratic given as arrays: compiled once for all examples."""

    def run(hessian, centre, offset, w, u, rate):
        def value_fn(w):
            return 0.5 * (w - centre) @ (hessian @ (w - centre)) + offset

        tx = gen_optax.scale_by_gen(probe=probe, **greedy(rate))
        extra = {}
        if known:
            extra["value"], extra["grad"] = jax.value_and_grad(value_fn)(w)
        return tx.update(u, tx.init(w), w, value_fn=value_fn, **extra)

    return jax.jit(run)


def probed(probe, problem, w, u, rate, known=True):
    as_float32 = [jnp.asarray(x, jnp.float32) for x in (problem.hessian, problem.centre, problem.offset, w, u, rate)]
    return quadratic_probe(probe, known)(*as_float32)[1]


@pytest.mark.parametrize("name", LOOKING_AHEAD)
@hypothesis.given(seed=st.integers(0, 10_000), log_ratio=st.floats(-0.5, 0.5))
def test_finds_the_minimizer_of_quadratics(name, seed, log_ratio):
    """eta* to 1e-4 in float32, from a rate within a factor of 3; the rate follows it at once when gamma = 0."""
    problem = random_quadratic(seed, condition=10.0)
    w = np.random.default_rng(seed).normal(size=6).astype(np.float32)
    u = -problem.gradient(w)
    slope, curvature = problem.slope_and_curvature(w, u)
    state = probed(LOOKING_AHEAD[name], problem, w, u, 10.0**log_ratio * slope / curvature)
    np.testing.assert_allclose(state.learning_rate, slope / curvature, rtol=1e-4)
    np.testing.assert_allclose(state.info.optimal_learning_rate, slope / curvature, rtol=1e-4)
    np.testing.assert_allclose(state.info.slope, slope, rtol=1e-4)
    np.testing.assert_allclose(state.info.curvature, curvature, rtol=1e-4)
    np.testing.assert_allclose(state.info.value, problem.value(w), rtol=1e-5)
    assert state.info.status == ProbeStatus.ACCEPTED


@pytest.mark.parametrize("name", ["three points", "map", "five points", "exact"])
@pytest.mark.parametrize("known", [True, False])
def test_newton_raphson_has_rate_one(name, known):
    """With u = -H^-1 G, eta* = 1."""
    for seed in range(5):
        problem = random_quadratic(seed, condition=30.0)
        w = problem.centre + np.random.default_rng(seed).normal(size=6)
        u = -np.linalg.solve(problem.hessian, problem.gradient(w))
        state = probed(LOOKING_AHEAD[name], problem, w, u, 0.5, known)
        np.testing.assert_allclose(state.learning_rate, 1.0, rtol=1e-4)


ONES = jnp.ones(6)


@pytest.mark.parametrize("name", LOOKING_AHEAD)
@pytest.mark.parametrize("log_loss", [-30, 0, 30])
def test_every_learning_rate_and_loss(name, log_loss):
    """eta* of 1e-12 to 1e6, losses of 1e-30 to 1e30: the rate found from half of it is right."""
    # The step is along -w / 4, so the loss is least at w - 4 w / 4: eta* = 4 in units of the step's size.
    problem = Quadratic(10.0**log_loss * np.diag([1.0, 2.0, 4.0, 1.0, 2.0, 4.0]), np.zeros(6))
    for rate in 10.0 ** np.arange(-12, 7, 3):
        state = probed(LOOKING_AHEAD[name], problem, ONES, -ONES / 4 / rate, 2 * rate)
        assert state.info.status == ProbeStatus.ACCEPTED, rate
        np.testing.assert_allclose(state.learning_rate, 4 * rate, rtol=1e-4)


def test_exact_has_no_radius():
    """Any present rate: the minimiser at 4 is found from 1e-12 and from 1e6."""
    for rate in 10.0 ** np.arange(-12, 7, 2):
        state = probed(gen_optax.exact(), Quadratic(np.eye(6), np.zeros(6)), ONES, -ONES / 4, rate)
        np.testing.assert_allclose(state.learning_rate, 4.0, rtol=1e-5, err_msg=rate)


@pytest.mark.parametrize("name", LOOKING_AHEAD)
def test_a_rate_of_1e6_where_the_loss_is_finite_comes_down(name):
    """Three points 250 000 times too far away still say where the minimum lies, to their rounding."""
    state = probed(LOOKING_AHEAD[name], Quadratic(2 * np.eye(6), np.zeros(6)), ONES, -ONES / 4, 1e6)
    assert 0 < state.learning_rate < 1e3


def numpy_line(params, batch, u):
    """The loss of the network along a step, and its slope by the gradient by hand: functions of the step size."""
    x, y = (np.asarray(batch[k], np.float64) for k in "xy")
    w, u = flat(params), flat(u)

    def at(t):
        return numpy_network_loss([p + t * v for p, v in zip(w, u, strict=True)], x, y)

    return lambda t: at(t)[0], lambda t: -sum(np.sum(g * v) for g, v in zip(at(t)[1], u, strict=True))


def step_of_network():
    """Parameters, batch, gradient and a step that is far from small."""
    params, batch = network()
    grads = jax.grad(network_loss)(params, **batch)
    return params, batch, grads, jax.tree.map(jnp.negative, grads)


@pytest.mark.parametrize(
    ("candidates", "batching", "known"),
    [
        ((-1.0, 0.0, 1.0), "vmap", True),
        ((-1.0, 0.0, 1.0), "map", False),
        ((-2.0, -0.5, 0.5, 1.0, 2.0), "vmap", False),
        ((-2.0, -0.5, 0.5, 1.0, 2.0), "map", True),
        ((1.0, 0.0, 3.0, 2.0), "vmap", True),
        ((1.0, 0.0, 3.0, 2.0), "map", False),
    ],
)
def test_finite_differences_on_a_network(candidates, batching, known):
    """Far from quadratic, at a large radius: the least-squares parabola of the losses in float64 NumPy."""
    params, batch, _, u = step_of_network()
    loss, _ = numpy_line(params, batch, u)
    h = 0.4
    c2, c1, _ = np.polyfit(h * np.array(candidates), [loss(c * h) for c in candidates], 2)
    value_fn = functools.partial(network_loss, **batch)
    value = value_fn(params) if known else None
    state, _ = one_probe(gen_optax.finite_difference(candidates, batching), value_fn, params, u, h, value=value)
    np.testing.assert_allclose([state.info.slope, state.info.curvature], [-c1, 2 * c2], rtol=1e-4)
    np.testing.assert_allclose(state.info.optimal_learning_rate, -c1 / (2 * c2), rtol=1e-4)


@pytest.mark.parametrize(
    ("candidates", "known"),
    [((0.0, 1.0), True), ((0.0, 1.0), False), ((2.0,), True), ((0.5, 1.0), False), ((-1.0, 1.0), True)],
)
def test_free_slope_on_a_network(candidates, known):
    """b = -<G, u> with G by hand, and A from L_c = L_0 - b c h + A (c h)^2 / 2."""
    params, batch, grads, _ = step_of_network()
    u, h = jax.tree.map(lambda g: -jnp.sign(g), grads), 0.05
    loss, slope = numpy_line(params, batch, u)
    t = np.array([c for c in candidates if c])
    bend = [loss(c * h) - loss(0) + slope(0) * c * h for c in t]
    value_fn = functools.partial(network_loss, **batch)
    probe = gen_optax.finite_difference(candidates, free_slope=True)
    value = value_fn(params) if known else None
    state, _ = one_probe(probe, value_fn, params, u, h, value=value, grad=grads)
    np.testing.assert_allclose(state.info.slope, slope(0), rtol=1e-5)
    np.testing.assert_allclose(state.info.curvature, 2 * sum(t**2 * bend) / sum(t**4) / h**2, rtol=1e-3)


# --- along the path --------------------------------------------------------------------------------------------------

LOOKING_BACK = {
    "three points": (gen_optax.finite_difference(along="path"), True),
    "four points": (gen_optax.finite_difference((-1.0, -0.25, 0.5, 1.0), along="path"), False),
    "five points, one by one": (gen_optax.finite_difference((-2.0, -1.0, 0.0, 0.5, 1.0), "map", along="path"), True),
    "backwards, one by one": (gen_optax.finite_difference((-1.0, -0.5, 0.0), "map", along="path"), False),
    "free slope": (gen_optax.finite_difference(along="path", free_slope=True), True),
    "free slope, two points": (gen_optax.finite_difference((-1.0, 1.0), along="path", free_slope=True), False),
    "exact": (gen_optax.exact(along="path"), True),
    "exact, no value": (gen_optax.exact(along="path"), False),
}


def path_probe(probe, known, value_fn, params, u, h):
    """One step `h u`, then a probe of it at another call: the parameters reached and the state."""
    tx = gen_optax.scale_by_gen(probe=probe, **greedy(h))

    def call(state, params):
        value, grad = jax.value_and_grad(value_fn)(params)
        extra = {"value": value, "grad": grad} if known else {"grad": grad}
        return tx.update(u, state, params, value_fn=value_fn, **extra)

    def run(params, u):
        updates, state = call(tx.init(params), params)
        params = optax.apply_updates(params, updates)
        return params, call(state, params)[1]

    return jax.jit(run)(params, u)


@pytest.mark.parametrize("name", LOOKING_BACK)
def test_along_the_path_on_a_quadratic(name):
    """Whatever the points, the parabola is that of the step behind, told from where it started."""
    probe, known = LOOKING_BACK[name]
    problem = random_quadratic(0, condition=10.0)
    rng = np.random.default_rng(0)
    w, u, h = rng.normal(size=6), -problem.gradient(rng.normal(size=6)), 0.05
    w, u = (jnp.asarray(x, jnp.float32) for x in (w, u))
    reached, state = path_probe(probe, known, problem.value_fn, w, u, h)
    step = np.asarray(reached, np.float64) - np.asarray(w, np.float64)
    slope, curvature = problem.slope_and_curvature(w, step)
    assert state.info.num_probes == 1
    np.testing.assert_allclose([h * state.info.slope, h**2 * state.info.curvature], [slope, curvature], rtol=1e-4)
    np.testing.assert_allclose(state.info.value, problem.value(w), rtol=1e-5)
    np.testing.assert_allclose(state.info.optimal_learning_rate, h * slope / curvature, rtol=1e-4)
    np.testing.assert_allclose(state.info.r_squared, 1.0, atol=1e-5)


@pytest.mark.parametrize("name", LOOKING_BACK)
def test_along_the_path_on_a_network(name):
    """Far from quadratic: the parabola about the present parameters in float64 NumPy, one step ahead of its start."""
    probe, known = LOOKING_BACK[name]
    params, batch, _, u = step_of_network()
    h = 0.8
    reached, state = path_probe(probe, known, functools.partial(network_loss, **batch), params, u, h)
    loss, ascent = numpy_line(reached, batch, jax.tree.map(lambda new, old: new - old, reached, params))
    start = loss(-1)
    if isinstance(probe, gen_optax._probe.Exact):
        slope, curvature = ascent(0), (ascent(-1e-5) - ascent(1e-5)) / 2e-5
        start = loss(0) + slope + curvature / 2  # the parabola's, not the loss's
    elif probe.free_slope:
        c, slope = np.array([c for c in probe.candidates if c]), ascent(0)
        bend = [loss(x) - loss(0) + slope * x for x in c]
        curvature = 2 * sum(c**2 * bend) / sum(c**4)
    else:
        c2, c1, _ = np.polyfit(probe.candidates, [loss(c) for c in probe.candidates], 2)
        slope, curvature = -c1, 2 * c2
    slope += curvature
    np.testing.assert_allclose([h * state.info.slope, h**2 * state.info.curvature], [slope, curvature], rtol=1e-3)
    np.testing.assert_allclose(state.info.value, start, rtol=1e-5)
    np.testing.assert_allclose(state.info.optimal_learning_rate, h * slope / curvature, rtol=1e-3)


def test_retrospective_is_a_name():
    assert gen_optax.retrospective() == gen_optax.finite_difference(along="path", batching="map")
    assert gen_optax.retrospective().direction == gen_optax.Path()


# ---------------------------------------------------------------------------------------------------------------------


def test_a_second_point_checks_the_free_slope():
    """A slope of three times the right one (of another batch, say) is not believed."""
    w = jnp.ones(3)
    two_points = gen_optax.finite_difference((0.0, 0.5, 1.0), free_slope=True)
    arguments = (lambda w: jnp.sum(w**2), w, -w, 0.5)
    right, _ = one_probe(two_points, *arguments, value=3.0, grad=2 * w)
    wrong, _ = one_probe(two_points, *arguments, value=3.0, grad=6 * w)
    assert right.info.status == ProbeStatus.ACCEPTED
    np.testing.assert_allclose(right.info.r_squared, 1.0, atol=1e-6)
    assert wrong.info.status == ProbeStatus.POOR_FIT
    assert wrong.learning_rate == 0.5


@pytest.mark.parametrize(("wall", "status"), [(1.5, ProbeStatus.NOT_FINITE), (0.9, ProbeStatus.OVERSHOOT)])
def test_a_wall_is_an_overshot_where_the_step_itself_meets_it(wall, status):
    """And not where only a candidate beyond the step does."""
    probe = gen_optax.finite_difference(candidates=(0.0, 0.5, 1.0, 2.0))

    def loss_fn(w):
        return jnp.where(w[0] < 1 - wall, jnp.inf, w[0] ** 2)

    tx = gen_optax.scale_by_gen(probe=probe, **greedy(1.0))
    w = jnp.ones(1)
    assert tx.update(-w, tx.init(w), w, value_fn=loss_fn)[1].info.status == status


def test_the_value_without_a_candidate_at_0_is_the_one_given():
    tx = gen_optax.scale_by_gen(probe=gen_optax.finite_difference(candidates=(0.5, 1.0, 2.0)), **greedy(0.5))
    w = jnp.ones(1)
    for given, expected in ({"value": 1.0}, 1.0), ({}, 0.75**2):
        state = tx.update(-w, tx.init(w), w, value_fn=lambda w: w[0] ** 2, **given)[1]
        assert state.info.value == pytest.approx(expected)


def test_r_squared_of_five_points_is_checked_and_of_three_is_not():
    """A loss with a kink: no parabola through five points, always one through three."""

    def value_fn(w):
        return jnp.abs(w - 0.4) + 0.01 * w**2

    w, u = jnp.zeros(()), jnp.ones(())
    five, _ = one_probe(gen_optax.finite_difference((-1.0, -0.5, 0.0, 0.5, 1.0)), value_fn, w, u, 1.0)
    three, _ = one_probe(gen_optax.finite_difference(), value_fn, w, u, 1.0)
    x = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    losses = np.abs(x - 0.4) + 0.01 * x**2
    residual = losses - np.polyval(np.polyfit(x, losses, 2), x)
    r_squared = 1 - np.sum(residual**2) / np.sum((losses - losses.mean()) ** 2)
    assert r_squared < 0.99
    np.testing.assert_allclose(five.info.r_squared, r_squared, atol=1e-5)
    assert five.info.status == ProbeStatus.POOR_FIT
    assert five.learning_rate == 1.0
    assert three.info.status == ProbeStatus.ACCEPTED


@pytest.mark.parametrize("name", ["three points", "map", "five points", "free slope"])
def test_abstains_below_the_rounding_of_the_loss(name):
    """L = 1e4 + sum(w^2): rounding 1e-3. A change of 1e-4 is not read, one of 100 is."""

    def value_fn(w):
        return jnp.sum(w**2) + 1e4

    w = jnp.full(4, 5.0)
    extra = {"value": value_fn(w), "grad": 2 * w}
    blind, _ = one_probe(LOOKING_AHEAD[name], value_fn, w, -2 * w, 5e-7, **extra)
    seeing, _ = one_probe(LOOKING_AHEAD[name], value_fn, w, -2 * w, 0.25, **extra)
    # With a known slope it is the curvature that drowns.
    drowned = ProbeStatus.NO_CURVATURE if name == "free slope" else ProbeStatus.BELOW_ROUNDING
    assert blind.info.status in (ProbeStatus.BELOW_ROUNDING, drowned)
    assert blind.learning_rate == np.float32(5e-7)
    assert seeing.info.status == ProbeStatus.ACCEPTED
    np.testing.assert_allclose(seeing.learning_rate, 0.5, rtol=1e-3)


@pytest.mark.parametrize("points", [(-1.0, 0.0, 1.0), (-1.0, -0.01, 0.0), (-1.0, 0.0, 0.01)])
@hypothesis.given(seed=st.integers(0, 1000))
def test_the_noise_of_a_plateau_never_looks_like_a_parabola(points, seed):
    """Losses that differ in the last place only: whatever the sum of the noise, the probe abstains.

    Also where two of the points are close to each other, which magnifies it a hundred times.
    """
    rng = np.random.default_rng(seed)
    value = 10.0 ** rng.uniform(-20, 20)
    ulps = np.float32(value) * (1 + np.finfo(np.float32).eps * rng.integers(-1, 2, size=3).astype(np.float32))

    state = plateau(points, jnp.asarray(ulps, jnp.float32))
    assert state.info.status == ProbeStatus.BELOW_ROUNDING
    assert state.learning_rate == 1


@functools.partial(jax.jit, static_argnums=0)
def plateau(points, losses):
    def value_fn(w):
        return jnp.interp(w, jnp.array(points), losses)

    return one_probe(gen_optax.finite_difference(points), value_fn, jnp.zeros(()), jnp.ones(()), 1.0)[0]


def test_a_coarse_loss_is_judged_by_its_own_rounding():
    """A bfloat16 loss changes in steps of 2^-8: one such step is noise, although exact in float32."""

    def value_fn(w):
        return (1 + w).astype(jnp.bfloat16)

    w, u = jnp.zeros(()), -jnp.ones(())
    state, _ = one_probe(gen_optax.finite_difference(), value_fn, w, u, 2.0**-7)
    assert state.info.status == ProbeStatus.BELOW_ROUNDING
    # The same holds where only the value that was handed in is coarse.
    fine = functools.partial(one_probe, gen_optax.finite_difference(), lambda w: 1 + w, w, u, 2.0**-7)
    assert fine()[0].info.status == ProbeStatus.NO_CURVATURE
    assert fine(value=jnp.ones((), jnp.bfloat16))[0].info.status == ProbeStatus.BELOW_ROUNDING


@pytest.mark.parametrize("known", [True, False])
@hypothesis.given(seed=st.integers(0, 1000))
def test_retrospective_judges_the_last_step_on_the_present_batch(known, seed):
    """Two quadratics: the step is taken on one and judged on the other, where the algebra is exact."""
    own, present = random_quadratic(seed, condition=10.0), random_quadratic(seed + 1, condition=10.0)
    rng = np.random.default_rng(seed)
    w, h = rng.normal(size=6).astype(np.float32), 0.1
    u = rng.normal(size=6).astype(np.float32)
    state, reached = two_steps(known)(
        *(jnp.asarray(x, jnp.float32) for x in (own.hessian, own.centre, present.hessian, present.centre, w, u))
    )
    step = np.asarray(reached, np.float64) - w
    np.testing.assert_allclose(step, h * u, rtol=1e-3, atol=1e-6)
    slope, curvature = present.slope_and_curvature(w, step)
    scale = present.value(w) + present.value(reached)
    np.testing.assert_allclose(state.info.value, present.value(w), rtol=1e-5)
    np.testing.assert_allclose(h * state.info.slope, slope, atol=3e-6 * scale)
    np.testing.assert_allclose(h * h * state.info.curvature, curvature, atol=3e-6 * scale)
    assert state.info.num_probes == 1  # at the first call there is nothing to look back on


@functools.cache
def two_steps(known):
    def run(own_hessian, own_centre, hessian, centre, w, u):
        def loss(hessian, centre, w):
            return 0.5 * (w - centre) @ (hessian @ (w - centre))

        tx = gen_optax.scale_by_gen(probe=gen_optax.retrospective(), **greedy(0.1))
        state = tx.init(w)
        for value_fn in (functools.partial(loss, own_hessian, own_centre), functools.partial(loss, hessian, centre)):
            value, grad = jax.value_and_grad(value_fn)(w)
            extra = {"value": value, "grad": grad} if known else {}
            updates, state = tx.update(u, state, w, value_fn=value_fn, **extra)
            old, w = w, optax.apply_updates(w, updates)
        return state, old

    return jax.jit(run)


@pytest.mark.parametrize(("last", "accepted"), [(1.5, True), (0.5, False)])
def test_a_loss_that_is_not_finite_beyond_the_steps_is_a_wall(last, accepted):
    """From 0 to 1, downhill: with an end of the world at 1.5 half a step were best. (At 0.5 the step is taken back.)"""
    tx = gen_optax.scale_by_gen(probe=gen_optax.retrospective(), **greedy(1.0))
    update = jitted_update(tx, lambda w: jnp.where(w < last, (w - 3.0) ** 2, jnp.inf))
    w = jnp.zeros(())
    updates, state = update(jnp.ones(()), tx.init(w), w)
    _, state = update(jnp.ones(()), state, w + updates)
    assert state.info.status == (ProbeStatus.ACCEPTED if accepted else ProbeStatus.OVERSHOOT)
    if accepted:
        np.testing.assert_allclose(state.learning_rate, 0.5, rtol=0.01)


def test_retrospective_does_not_see_wrinkles():
    """Ripples that turn the slope round wherever one looks, but are small beside what the steps did."""

    def loss(w):
        return (w - 3.0) ** 2 + 1e-2 * jnp.sin(1e4 * w)

    tx = gen_optax.scale_by_gen(probe=gen_optax.retrospective(), **greedy(1.0))
    update = jitted_update(tx, loss)
    w = jnp.zeros(())
    updates, state = update(jnp.ones(()), tx.init(w), w, value=loss(w), grad=jax.grad(loss)(w))
    w = w + updates
    assert abs(jax.grad(loss)(w)) > 10 * abs(2 * (w - 3.0))
    _, state = update(jnp.ones(()), state, w, value=loss(w), grad=jax.grad(loss)(w))
    np.testing.assert_allclose([state.info.slope, state.info.curvature], [6.0, 2.0], atol=0.05)


@pytest.mark.parametrize(
    ("every", "behind"),
    [
        (8, {8: 4, 16: 8, 24: 8, 32: 16}),
        (3, {3: 1, 6: 2, 9: 1, 12: 4, 15: 7, 18: 2, 21: 3, 24: 6, 27: 9, 30: 12, 33: 15, 36: 18}),
        (16, {16: 8, 32: 16, 48: 16}),
        (24, {24: 8, 48: 24}),
    ],
)
def test_retrospective_judges_several_steps_together(every, behind):
    """How many lie behind the probe of which call: up to 16, and fewer at first."""
    problem = random_quadratic(0, condition=10.0)
    controller = gen_optax.algorithm_1(init_learning_rate=0.01)
    tx = gen_optax.gen(optax.sgd(1.0), controller=controller, probe=gen_optax.retrospective(), every=every)

    @jax.jit
    def step(w, state):
        value, grad = jax.value_and_grad(problem.value_fn)(w)
        updates, state = tx.update(grad, state, w, value=value, grad=grad, value_fn=problem.value_fn)
        return optax.apply_updates(w, updates), state

    w = jnp.asarray(problem.centre, jnp.float32) + 1.0
    state, path = tx.init(w), [w]  # where each call finds the parameters
    for call in range(1, max(behind) + 1):
        rate = gen_state(state).applied_learning_rate
        w, state = step(w, state)
        info = gen_state(state).info
        assert info.num_probes == sum(c <= call for c in behind)
        if call in behind:
            start = np.asarray(path[-1 - behind[call]], np.float64)
            slope, curvature = problem.slope_and_curvature(start, path[-1] - start)
            tolerance = 1e-5 * problem.value(start)
            np.testing.assert_allclose(rate * info.slope, slope, atol=tolerance)
            np.testing.assert_allclose(rate**2 * info.curvature, curvature, atol=tolerance)
        path.append(w)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_what_retrospective_keeps(dtype):
    """The parameters that the last steps started from, in their own dtype."""
    w = {"a": jnp.ones(3, dtype), "n": jnp.arange(2)}
    tx = gen_optax.scale_by_gen(probe=gen_optax.retrospective(), **greedy(0.1))
    state = tx.init(w)
    updates = {"a": jnp.ones(3, dtype), "n": jnp.zeros(2, jnp.int32)}
    _, new = jitted_update(tx, lambda w: jnp.sum(w["a"].astype(jnp.float32) ** 2))(updates, state, w)
    for s in (state, new):
        jax.tree.map(np.testing.assert_array_equal, s.probe.anchor, w)
        assert s.probe.anchor["a"].dtype == dtype


@pytest.mark.parametrize("probe", [gen_optax.finite_difference(independent=True), gen_optax.exact(independent=True)])
def test_an_independent_probe_judges_the_step_as_applied(probe):
    """An eighth before the horizon the step is h = eta / 2, and the target b / (A h) times eta."""
    w = jnp.ones(3)
    tx = gen_optax.scale_by_gen(probe=probe, num_steps=8, **greedy(0.25))
    state = tx.init(w)._replace(count=jnp.int32(7))
    updates, state = jitted_update(tx, lambda w: jnp.sum(w**2))(-2 * w, state, w)
    # b = 12, A = 24, h = 0.125: b / (A h) = 4.
    np.testing.assert_allclose(state.learning_rate, 0.25 * 4, rtol=1e-5)
    np.testing.assert_allclose(updates, -2 * w * 0.25 * 4 / 2, rtol=1e-5)
    np.testing.assert_allclose(state.info.optimal_learning_rate, 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": (0.0, 1.0)}, r"three distinct candidates, got \(0\.0, 1\.0\).*free_slope=True"),
        ({"candidates": (0.0, 1.0, 1.0)}, "three distinct"),
        ({"candidates": (0.0,), "free_slope": True}, "point other than 0"),
        ({"candidates": (0.0, 1.0, np.inf)}, r"finite multiples.*inf"),
        ({"batching": "scan"}, r'"vmap" or "map", got \'scan\''),
        ({"free_slope": True, "independent": True}, "Choose one"),
        ({"along": "line"}, r'"step" or "path", got \'line\''),
        ({"along": "path", "candidates": (-0.5, 0.0, 1.0)}, r"candidates needs -1, where the path starts, got \(-0\.5"),
        ({"along": "path", "candidates": (0.0, 1.0), "free_slope": True}, "candidates needs -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        gen_optax.finite_difference(**arguments)


def test_exact_along_something_else():
    with pytest.raises(ValueError, match=r'"step" or "path", got \'line\''):
        gen_optax.exact(along="line")


def test_free_slope_says_that_it_needs_the_gradient():
    w = jnp.ones(3)
    with pytest.raises(ValueError, match=r"free_slope=True\) needs grad"):
        one_probe(gen_optax.finite_difference(free_slope=True), lambda w: jnp.sum(w**2), w, -w)


@pytest.mark.parametrize("name", PROBES)
def test_probes_are_values(name):
    """Hashable and comparable, as jit's static arguments want them, and readable when printed."""
    probe = PROBES[name]
    assert hash(probe) == hash(eval(repr(probe), {**vars(gen_optax), **vars(gen_optax._probe)}))
    assert probe == eval(repr(probe), vars(gen_optax._probe))


def test_the_clipped_gradient_is_not_the_slope():
    """In a chain the raw gradient goes in as grad; the direction is clipped, the slope is right."""
    w = jnp.array([30.0, 40.0])

    def value_fn(w):
        return jnp.sum(w**2) / 2

    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.sgd(1.0),
        gen_optax.scale_by_gen(probe=gen_optax.finite_difference(free_slope=True), **greedy(1.0)),
    )
    _, state = jitted_update(tx, value_fn)(w, tx.init(w), w, value=value_fn(w), grad=w)
    np.testing.assert_allclose(gen_state(state).info.slope, 50.0, rtol=1e-5)
    np.testing.assert_allclose(gen_state(state).info.curvature, 1.0, rtol=1e-2)


@pytest.mark.parametrize("probe", [gen_optax.retrospective(), gen_optax.exact(along="path")], ids=["three", "exact"])
def test_a_path_into_a_wall_is_taken_back(probe):
    """Whether losses or derivatives are measured."""
    tx = gen_optax.gen(optax.sgd(1.0, momentum=0.9), probe=probe)

    def loss_fn(w):
        return jnp.where(jnp.any(w > 1.5), jnp.nan, jnp.sum((w - 2.0) ** 2))

    def step(carry, _):
        w, state = carry
        value = loss_fn(w)
        updates, state = tx.update(2 * (w - 2.0), state, w, value=value, value_fn=loss_fn)
        return (optax.apply_updates(w, updates), state), optax.tree.get(state, "status")

    w = jnp.zeros(3)
    (w, _), statuses = jax.lax.scan(step, (w, tx.init(w)), length=200)
    assert gen_optax.ProbeStatus.OVERSHOOT in statuses
    assert np.all(np.isfinite(w))


@pytest.mark.parametrize("probe", [gen_optax.retrospective(), gen_optax.exact(along="path")], ids=["three", "exact"])
def test_a_batch_that_is_nan_is_not_the_fault_of_the_steps(probe):
    """Nothing is taken back, and the rate stays."""
    tx = gen_optax.gen(optax.sgd(1.0), probe=probe)

    def step(carry, x):
        w, state = carry
        loss_fn = lambda w: jnp.mean((w - x) ** 2)  # noqa: E731
        value, grads = jax.value_and_grad(loss_fn)(w)
        updates, state = tx.update(jnp.nan_to_num(grads), state, w, value=value, value_fn=loss_fn)
        return (optax.apply_updates(w, updates), state), gen_optax.metrics(state)

    data = 3 + jax.random.normal(jax.random.key(0), (100, 8))
    w = jnp.zeros(8)
    seen = jax.lax.scan(step, (w, tx.init(w)), data.at[80].set(jnp.nan))[1]
    assert seen["status"][80] == gen_optax.ProbeStatus.NOT_FINITE
    assert seen["learning_rate"][80] == seen["learning_rate"][79]


def test_a_value_is_the_loss_here_also_where_no_candidate_is():
    tx = gen_optax.gen(optax.sgd(1.0), probe=gen_optax.finite_difference((-1.0, -0.5, 1.0), along="path"))
    w, state = jnp.zeros(3), None
    state = tx.init(w)
    for _ in range(20):
        value, grads = jax.value_and_grad(lambda w: jnp.sum((w - 2.0) ** 2))(w)
        updates, state = tx.update(grads, state, w, value=value, value_fn=lambda w: jnp.sum((w - 2.0) ** 2))
        w = optax.apply_updates(w, updates)
    assert not gen_optax.metrics(state)["notices"]


@pytest.mark.parametrize("jitted", [False, True])
def test_a_controller_may_read_the_slope(jitted):
    """Also under jit, where the start and the probes are branches of one program."""

    class Reading(type(gen_optax.balance())):
        def observe(self, learning_rate, state, measurement, status, context):
            assert context.slope is not None
            return super().observe(learning_rate, state, measurement, status, context)

    def loss_fn(w):
        return jnp.sum((w - 2.0) ** 2)

    tx = gen_optax.gen(optax.sgd(1.0), controller=Reading())
    w = jnp.zeros(3)
    state, update = tx.init(w), lambda s, w: tx.update(2 * (w - 2.0), s, w, value=loss_fn(w), value_fn=loss_fn)
    for _ in range(3):
        updates, state = (jax.jit(update) if jitted else update)(state, w)
        w = optax.apply_updates(w, updates)
    assert optax.tree.get(state, "num_probes") == 2
