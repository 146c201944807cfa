"""The default controller: one law in two phases, gains that other batches confirm, an emergency."""

import dataclasses
import functools
import pathlib
import re
import textwrap

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import measurement, observed, random_quadratic

import gen_optax
from gen_optax import ProbeStatus
from gen_optax._balance import Claims

SEARCH, HOLD = 8, 5000  # probes so far


def remembered(controller, age, claims=None, wish=0.0):
    state = controller.init(jnp.float32)[1]
    claims = state.claims if claims is None else Claims(jnp.int32(claims[0]), *map(jnp.float32, claims[1:]))
    return state._replace(age=jnp.int32(age), claims=claims, wish=jnp.float32(wish))


def next_rate(measured, age, rate=0.1, every=16, claims=None, wish=0.0, **settings):
    """What a known rate becomes after so many probes, and the status."""
    controller = gen_optax.balance(**settings)
    found, state, status = observed(controller, measured, rate, remembered(controller, age, claims, wish), every)
    assert state.age == age + 1
    return float(found), ProbeStatus(int(status)).name


MEMORY = gen_optax.balance().memory


def weight(age, every=16, memory=MEMORY, search_probes=50):
    """`memory` times the calls since the last probe, as a part of all; 1 for the first."""
    searching = age < search_probes
    calls = age if searching else search_probes + (age - search_probes) * every
    spacing = 1 if searching else every
    return memory * spacing / (calls + memory * spacing)


def blocks(text):
    """The code blocks of a text in Markdown, without its indentation."""
    return re.findall(r"```(\w+)\n(.*?)```", textwrap.dedent(text), re.DOTALL)


DOCSTRING = blocks("    " + gen_optax.balance.__doc__)
PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "how-it-works.md").read_text()


def as_documented(slope, curvature, noise, rate, probes, every, unconfirmed=0.0, wish=0.0, **settings):
    """The rule that the docstring states, run in float64."""
    return rule_of(DOCSTRING, "next_rate", **settings)(rate, slope, curvature, noise, unconfirmed, wish, probes, every)


def rule_of(documented, name, **settings):
    """A function that a docstring defines, with the default constants of the controller but for these settings."""
    constants = {field.name: field.default for field in dataclasses.fields(gen_optax.balance)} | settings
    functions = {name: getattr(np, name) for name in ("clip", "cbrt", "exp", "log")}
    scope = constants | functions
    (rule,) = (text for language, text in documented if language == "python")
    exec(rule, scope)
    return scope[name]


def test_the_page_opens_with_what_the_docstring_states():
    """The rule and the states, word by word."""
    stated = [text for language, text in DOCSTRING if language in ("python", "text")]
    assert len(stated) == 2
    assert [text for _, text in blocks(PAGE)][:2] == stated


@pytest.mark.parametrize(
    ("sigma", "memory", "max_change", "every"), [(1.8, 2.0, 2.0, 16), (0.7, 10.0, 4.0, 1), (1.6, 4.0, 1.1, 3)]
)
@hypothesis.given(
    log_ratio=st.floats(-2, 2),
    sign=st.sampled_from([1, 1, -1]),
    of_curvature=st.sampled_from([1, 1, 0, -1]),
    log_rate=st.floats(-12, 6),
    log_loss=st.floats(-20, 20),
    age=st.one_of(st.integers(0, 49), st.integers(50, 10_000)),
    wish=st.floats(-1.1, 1.1),
)
def test_the_law(sigma, memory, max_change, every, log_ratio, sign, of_curvature, log_rate, log_loss, age, wish):
    """Search and hold as documented: rates and losses of any size, ascents and planes among them."""
    rate, size = 10.0**log_rate, 10.0**log_loss
    noise = 1e-3 * size
    slope, curvature = sign * size * 10.0**log_ratio, of_curvature * size
    settings = {"sigma": sigma, "memory": memory, "max_change": max_change}
    expected = as_documented(slope, curvature, noise, rate, age, every, wish=wish, **settings)
    measured = measurement(slope, curvature, noise=noise, value=size, end_value=size)
    found, _ = next_rate(measured, age, rate, every, wish=wish, **settings)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("slopes", [(1.0, 1.0), (0.8, 1.2), (0.6, 1.4)])
def test_noise_of_the_slope_averages_out_at_balance(slopes):
    """sigma rho is 1 on average, so the rate ends where it began, however far it scatters."""
    rate = 0.1
    for slope in slopes:
        rate, _ = next_rate(measurement(slope, 2.0), HOLD, rate, sigma=2.0, memory=1e9)
    assert rate == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("slope", "log_factor"), [(1.0, 0.0), (0.9, -0.1), (1.2, 0.2), (1.8, np.log(2)), (0.1, -np.log(2))]
)
def test_the_logarithm_follows_the_excess_over_balance(slope, log_factor):
    """sigma rho - 1 within the clamp, times the weight: at rest where b h is half of A h^2."""
    rate, _ = next_rate(measurement(slope, 2.0), HOLD, sigma=2.0, memory=1e9)  # a weight of 1
    assert rate == pytest.approx(0.1 * np.exp(log_factor), rel=1e-5)


@pytest.mark.parametrize(
    ("ratio", "factor"),
    [(0.01, 0.5), (0.5, 0.5), (0.8, 0.8), (1.0, 1.0), (1.728, 1.2), (3.375, 1.5), (8.0, 2.0), (1e3, 2.0)],
)
def test_a_search_rises_with_care_and_falls_at_once(ratio, factor):
    """Up by the cube root of the factor to the target, as far as the clamp."""
    assert next_rate(measurement(ratio, 1.0), SEARCH)[0] == pytest.approx(0.1 * factor ** weight(SEARCH), rel=1e-5)
    if ratio == 1.728:
        assert next_rate(measurement(ratio, 1.0), HOLD)[0] > 0.1 * 1.2 ** weight(HOLD)


@pytest.mark.parametrize(("age", "sigma", "factor"), [(0, 2.0, 1.0), (49, 2.0, 1.0), (49, 1.0, 1.0), (50, 2.0, 2.0)])
def test_a_search_is_greedy(age, sigma, factor):
    """Sigma is at most 1 until it ends. At rho = 1 it then moves up, here as far as the clamp."""
    rate, _ = next_rate(measurement(2.0, 2.0), age, sigma=sigma)
    assert rate == pytest.approx(0.1 * factor ** weight(age))


def test_a_search_of_ones_own_length_and_sigma():
    settings = {"search_probes": 5, "search_sigma": 0.5, "memory": 1e9}
    assert next_rate(measurement(2.0, 1.0), 4, **settings)[0] == pytest.approx(0.1)
    assert next_rate(measurement(2.0, 1.0), 5, **settings)[0] == pytest.approx(0.1 * 2)
    assert next_rate(measurement(2.0, 1.0), 0, search_probes=0, memory=1e9)[0] == pytest.approx(0.1 * 2)


def test_the_weight_is_a_part_of_the_past():
    """1 for the first probe. The first one after the search stands for 16 calls; then ever less, without end."""
    eightfold = measurement(8.0, 1.0)
    for age, expected in ((0, 1), (8, 2 / 10), (49, 2 / 51), (50, 32 / 82), (62, 32 / 274), (100_000, 2e-5)):
        found = next_rate(eightfold, age, memory=2.0)[0]
        assert np.log(found / 0.1) == pytest.approx(expected * np.log(2), rel=1e-2), age
    assert next_rate(eightfold, 50, every=1, memory=2.0)[0] == pytest.approx(0.1 * 2 ** (2 / 52), rel=1e-5)


def test_each_doubling_of_a_run_moves_the_rate_as_much():
    """However long it is, probes that all say the same move the rate by about `memory` log 2 times what each says."""
    ages = np.arange(50, 400_000)
    weights = np.asarray(gen_optax.balance()._weight(jnp.asarray(ages), 16, jnp.float32))
    calls = 50 + (ages - 50) * 16
    sums = [weights[(calls >= t) & (calls < 2 * t)].sum() for t in 10 ** np.arange(3, 7)]
    np.testing.assert_allclose(sums, MEMORY * np.log(2), rtol=0.15)


def test_a_search_falls_below_where_it_began():
    """As far as it takes: momentum makes later steps a hundred times as long as the first."""
    controller, rate = gen_optax.balance(), 0.1
    state = remembered(controller, 0)
    for _ in range(40):
        rate, state, _ = observed(controller, measurement(-1.0, 2.0), rate, state)
    assert rate < 0.1 / 20


@pytest.mark.parametrize("curvature", [2.0, 0.0, -2.0])
@pytest.mark.parametrize("slope", [-0.1, -3.0, -5.0])
@pytest.mark.parametrize("age", [SEARCH, HOLD])
def test_an_ascent_lowers_the_rate(slope, curvature, age):
    """As far as a probe can, however little or however much the loss curves."""
    rate, status = next_rate(measurement(slope, curvature), age)
    assert status == "ASCENT"
    assert rate == pytest.approx(0.1 * 0.5 ** weight(age), rel=1e-5)


def test_negative_curvature_raises_no_rate_that_is_being_found():
    """But curvature that its rounding hides does: a plane has no minimum either."""
    concave, plane = measurement(1.0, -1.0), measurement(1.0, 0.0)
    assert next_rate(concave, SEARCH) == (np.float32(0.1), "NO_CURVATURE")
    assert next_rate(plane, SEARCH)[0] > 0.1
    assert next_rate(concave, HOLD)[0] > 0.1


@pytest.mark.parametrize("age", [SEARCH, HOLD])
@pytest.mark.parametrize(
    ("status", "measured", "factor"),
    [
        ("NOT_FINITE", measurement(np.nan, np.nan), 1.0),
        ("NOT_FINITE", measurement(1.0, 1.0, value=np.nan), 1.0),
        ("OVERSHOOT", measurement(np.nan, np.nan, end_value=np.nan), 0.1),
        ("OVERSHOOT", measurement(1.0, 1.0, end_value=np.inf), 0.1),
        ("BELOW_ROUNDING", measurement(1e-8, 1e-8), 1.0),
        ("POOR_FIT", measurement(1.0, 100.0, r_squared=0.5), 1.0),
        ("FALSE_ALARM", measurement(-1.0, 2.0, out_of_turn=True), 1.0),  # its batch was chosen for its loss
        ("FALSE_ALARM", measurement(5.0, 2.0, out_of_turn=True), 1.0),
        ("ASCENT", measurement(-1.0, 1.0), "down"),
        ("NO_CURVATURE", measurement(1.0, 0.0), "up"),
        ("ACCEPTED", measurement(0.1, 1.0), "down"),
        ("ACCEPTED", measurement(10.0, 1.0), "up"),
    ],
)
def test_what_each_status_does_to_the_rate(age, status, measured, factor):
    """A smoothed step of the clamp up or down, a fall to a tenth at once, or nothing."""
    clamp = 2.0 ** weight(age)
    rate, found = next_rate(measured, age)
    assert found == status
    assert rate == pytest.approx(0.1 * {"up": clamp, "down": 1 / clamp}.get(factor, factor), rel=1e-5)


@pytest.mark.parametrize("step_size", [1e-4, 0.1, 10.0])
def test_the_target_is_in_units_of_the_present_rate(step_size):
    """sigma b h / (A h^2), whatever h, the rate as applied."""
    found = [next_rate(measurement(2.0, 3.0, step_size=h), HOLD)[0] for h in (step_size, 1.0)]
    assert found[0] == found[1]


FEW = st.floats(-5, 5, width=32)
MEASUREMENTS = {
    "slope": FEW,
    "lower": st.floats(0, 10, width=32),
    "curvature": FEW,
    "noise": st.sampled_from([0.0, 0.01, 1.0]),
    "value": st.sampled_from([1.0, -1.0, 0.01]),
    "end_value": st.one_of(st.floats(-10, 10, width=32), st.sampled_from([2.0, 2.1, 1e30])),
    "higher": st.one_of(st.floats(0, 10, width=32), st.sampled_from([np.inf, np.nan])),
    "jumped": st.booleans(),
    "in_turn": st.booleans(),
    "r_squared": st.sampled_from([1.0, 1.0, 0.5]),
    "age": st.sampled_from([0, 8, 49, 50, 5000]),
}


def as_measured(slope, curvature, end_value, *, noise, value, r_squared, jumped, in_turn):
    """As a probe along the path reports it."""
    flags = {"jumped": jumped, "is_path": True, "out_of_turn": not in_turn}
    return measurement(slope, curvature, noise=noise, value=value, end_value=end_value, r_squared=r_squared, **flags)


@hypothesis.given(**MEASUREMENTS)
@hypothesis.settings(max_examples=500)
def test_a_lower_slope_never_raises_the_next_rate(
    slope, lower, curvature, noise, value, end_value, higher, jumped, in_turn, r_squared, age
):
    """Everything else fixed; but a slope within its noise says nothing of the rate, which stays."""
    fixed = {"noise": noise, "value": value, "r_squared": r_squared, "jumped": jumped, "in_turn": in_turn}
    measured = as_measured(slope - lower, curvature, end_value, **fixed)
    rate, status = next_rate(measured, age)
    hypothesis.assume(status != "BELOW_ROUNDING")
    assert rate <= next_rate(as_measured(slope, curvature, end_value, **fixed), age)[0] * (1 + 1e-6)


@hypothesis.given(**MEASUREMENTS)
@hypothesis.settings(max_examples=500)
def test_a_higher_loss_at_the_end_never_raises_the_next_rate(
    slope, lower, curvature, noise, value, end_value, higher, jumped, in_turn, r_squared, age
):
    """Everything else fixed: neither a little higher, nor infinite, nor NaN."""
    fixed = {"noise": noise, "value": value, "r_squared": r_squared, "jumped": jumped, "in_turn": in_turn}
    before, _ = next_rate(as_measured(slope, curvature, end_value, **fixed), age)
    after, _ = next_rate(as_measured(slope, curvature, end_value + higher, **fixed), age)
    assert after <= before * (1 + 1e-6)


def paths(number, gained, lost, scatter=0.0, seed=0, **settings):
    """The rate after so many paths that gained and lost so much, by itself at rest, as a part of what it was."""
    rng = np.random.default_rng(seed)
    values = 5 + scatter * rng.standard_normal((2, number)) + np.array([[0.0], [-1.0]]) * np.array([[0.0], [lost]])
    ends = values[0] - gained
    seen = [jnp.asarray(x, jnp.float32) for x in (values[0], values[1], ends)]
    controller = gen_optax.balance(sigma=2.0, memory=50.0, **settings)  # a weight of 0.05 after 1,000 probes
    return float(_paths(controller, *seen)) / 0.1


@functools.partial(jax.jit, static_argnums=0)
def _paths(controller, values, before, ends):
    def probe(carry, seen):
        (rate, state), (value, value_before, end) = carry, seen
        measured = measurement(1.0, 2.0, is_complete=True, is_path=True)
        measured = measured._replace(value=value, value_before=value_before, end_value=end)
        rate, state, _ = observed(controller, measured, rate, state, 8)
        return (rate, state), None

    (rate, _), _ = jax.lax.scan(probe, (jnp.float32(0.1), remembered(controller, 1000)), (values, before, ends))
    return rate


def test_a_gain_that_the_next_batch_takes_back_does_not_count():
    assert paths(30, 1.0, 0.0) == pytest.approx(1.0)
    assert paths(30, 1.0, 1.0) == pytest.approx(0.5 ** (29 * 0.05 / 1.0), rel=0.1)
    assert 0.4 < paths(30, 1.0, 0.5) < 0.6
    assert paths(30, 1.0, -1.0) == pytest.approx(1.0)  # the next batch is better: no reason for doubt


def test_the_first_path_says_nothing_of_others():
    assert paths(1, 1.0, 1.0) == pytest.approx(1.0)
    assert paths(2, 1.0, 1.0) < 1.0


def test_a_loss_that_rises_by_itself_is_not_held_against_the_steps():
    """Twice as much as they claim to gain, or while they gain nothing."""
    assert paths(30, 1.0, 3.0) == pytest.approx(1.0)
    assert paths(30, 0.0, 1.0) == pytest.approx(1.0)


def test_batches_that_scatter_confirm_on_average():
    found = [paths(200, 0.1, 0.0, scatter=1.0, seed=seed) for seed in range(5)]
    flattered = [paths(200, 1.0, 1.0, scatter=1.0, seed=seed) for seed in range(5)]
    assert np.median(found) > 0.3
    assert max(flattered) < 0.05


def test_a_gain_below_rounding_is_not_doubted():
    controller = gen_optax.balance(sigma=2.0)
    claims = (10, 1e-3, 1e-3, 0.0)
    for noise, doubted in ((1e-2, False), (1e-6, True)):
        measured = measurement(1.0, 2.0, noise=noise, is_complete=True)
        measured = measured._replace(value=1.0, value_before=0.999, end_value=0.999)
        rate, *_ = observed(controller, measured, 0.1, remembered(controller, HOLD, claims=claims))
        assert (rate < 0.1 * (1 - 1e-5)) == doubted


@pytest.mark.parametrize("probe", [None, gen_optax.finite_difference(independent=True)], ids=["path", "single step"])
def test_a_level_that_jumps_leaves_the_rate(probe):
    """The loss of every batch jumps by a constant, 0.4 of what it had gained: nothing else that is measured changes."""
    problem = random_quadratic(0, condition=10.0)
    start = jnp.asarray(problem.centre, jnp.float32) + 1.0
    tx = gen_optax.gen(optax.sgd(1.0), probe=probe)

    @jax.jit
    def rates(jump):
        def step(carry, t):
            w, state = carry
            here = jnp.where(t < 200, 0.0, jump)
            value_fn = lambda w: problem.value_fn(w) + here  # noqa: E731
            value, grads = jax.value_and_grad(value_fn)(w)
            updates, state = tx.update(grads, state, w, value=value, value_fn=value_fn)
            return (optax.apply_updates(w, updates), state), gen_optax.metrics(state)["learning_rate"]

        return jax.lax.scan(step, (start, tx.init(start)), jnp.arange(400))[1]

    calm, upset = (np.asarray(rates(jump)) for jump in (0.0, 0.4 * problem.value(start)))
    np.testing.assert_array_equal(calm[:200], upset[:200])
    assert upset[200:].min() > 0.7 * calm[200:].min()


@pytest.mark.parametrize(
    "probe", [gen_optax.finite_difference(), gen_optax.exact(), gen_optax.finite_difference(free_slope=True)]
)
def test_the_batch_of_the_gradient_is_refused(probe):
    """There its own noise counts as slope."""
    with pytest.raises(ValueError, match=r"(?s)computed from.*independent=True.*algorithm_1"):
        gen_optax.scale_by_gen(probe=probe)
    gen_optax.scale_by_gen(probe=probe, controller=gen_optax.algorithm_1())
    for other in (gen_optax.exact(independent=True), gen_optax.exact(along="path")):
        gen_optax.scale_by_gen(probe=other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_learning_rate": 0.0}, "init_learning_rate must be a positive number, or None"),
        ({"sigma": -1.0}, "sigma must be a positive number, got -1.0"),
        ({"memory": 0.0}, "memory must be a positive number, got 0.0"),
        ({"max_change": 1.0}, "max_change must be greater than 1, got 1.0"),
        ({"max_change": None}, "max_change must be greater than 1, got None"),
        ({"search_probes": 1.5}, "search_probes must be a whole number"),
        ({"confirm_errors": np.nan}, "confirm_errors must be a number"),
    ],
)
def test_settings_outside_their_range(settings, message):
    with pytest.raises(ValueError, match=message):
        gen_optax.balance(**settings)


@pytest.mark.parametrize("number", [6, 400])
def test_batches_that_come_back_raise_no_rate(number):
    """Six batches in turn flatter the steps, and 400 do not: from a rate far too low it rises with these alone."""
    tx = gen_optax.gen(optax.sgd(1.0), controller=gen_optax.balance(1e-3, search_probes=0))

    def step(carry, x):
        w, state = carry
        loss_fn = lambda w: jnp.mean((w - x) ** 2)  # noqa: E731
        value, grads = jax.value_and_grad(loss_fn)(w)
        updates, state = tx.update(grads, state, w, value=value, value_fn=loss_fn)
        return (optax.apply_updates(w, updates), state), gen_optax.metrics(state)

    batches = 3 + jax.random.normal(jax.random.key(0), (number, 8, 4))
    w = jnp.zeros(4)
    _, seen = jax.lax.scan(step, (w, tx.init(w)), batches[jnp.arange(400) % number])
    told = np.flatnonzero(seen["notices"] & gen_optax.Notice.BATCH_SEEN)
    assert (told.size > 0) == (number == 6)
    rates = seen["learning_rate"][told[0] if told.size else 0 :]
    assert (rates.max() > rates[0]) == (number == 400)
