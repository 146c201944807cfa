"""The cosine between two stretches of a run: when it is looked at, what it is, and that the rate follows it."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import gen_state
from test_balance import DOCSTRING, rule_of

import gen_optax
from gen_optax import _alignment

START, TURN, END = 128, 192, 256


def cosine_of(*points, steps=None):
    """The alignment at the last of three points that a run is at when stretches begin and end."""
    state = _alignment.init(points[0])
    for call, params in zip((START, TURN, END), points, strict=True):
        context = types.SimpleNamespace(
            params=params,
            updates=jax.tree.map(jnp.zeros_like, params) if steps is None else steps,
            call=jnp.int32(call),
            learning_rate=jnp.float32(1),
            axis_name=None,
        )
        here = _alignment.look(state, context) if _alignment.is_due(state, call) else None
        known, cosine, state = _alignment.update(state, here, context)
        assert bool(known) == (call == END and bool(known))
    return float(cosine) if known else None


def stretches(rng, shape, cosine):
    """Three points with this cosine between the displacements, far from the origin."""
    first, other = rng.normal(size=(2, *shape))
    other -= np.sum(first * other) / np.sum(first**2) * first
    second = cosine * first / np.linalg.norm(first) + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)
    start = 10 * rng.normal(size=shape)
    return [jnp.asarray(x, jnp.float32) for x in (start, start + 0.1 * first, start + 0.1 * first + second)]


@pytest.mark.parametrize("shape", [(7,), (5000,), (300, 40), (3, 3, 16, 64), (2, 1, 900)])
@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.2, 0.9])
def test_a_sketch_keeps_the_cosine(shape, cosine):
    error = 1e-4 if np.prod(shape) <= 256 else 4 / np.sqrt(256)
    assert cosine_of(*stretches(np.random.default_rng(1), shape, cosine)) == pytest.approx(cosine, abs=error)


def test_of_steps_of_low_rank_too():
    """Gradients of layers are: signs shared by a row or a column would see one number of them."""
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 400)), rng.normal(size=(2, 300))
    first, second = (np.outer(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(left, right, strict=True))
    points = [jnp.asarray(x, jnp.float32) for x in (0 * first, first, 1.3 * first + second)]
    assert cosine_of(*points) == pytest.approx(0.3 / np.sqrt(1.09), abs=0.25)


def test_of_steps_whose_sums_are_zero():
    """All entries of a row have one sign at first, then two in equal numbers."""
    ones = jnp.ones((300, 40))
    halves = ones.at[:, 20:].set(-1)
    assert cosine_of(0 * ones, ones, ones + halves) == pytest.approx(0, abs=0.25)


def test_units_do_not_matter_and_sizes_do():
    rng = np.random.default_rng(0)
    large, small = stretches(rng, (150,), 0.9), stretches(rng, (50,), -0.5)
    plain = [{"a": a, "b": b} for a, b in zip(large, small, strict=True)]
    scaled = [{"a": a, "b": 1e6 * b} for a, b in zip(large, small, strict=True)]
    expected = (150 * 0.9 - 50 * 0.5) / 200
    assert cosine_of(*plain) == pytest.approx(expected, abs=1e-3)
    assert cosine_of(*scaled) == pytest.approx(expected, abs=1e-3)


def test_what_does_not_move_has_no_direction():
    rng = np.random.default_rng(0)
    points = stretches(rng, (50,), 0.6)
    frozen = [{"a": a, "fixed": jnp.ones(1000), "steps": jnp.arange(3), "none": None} for a in points]
    assert cosine_of(*frozen) == pytest.approx(0.6, abs=1e-3)
    assert cosine_of(*[points[0]] * 3) is None
    assert cosine_of(points[0], points[1], points[1]) is None
    assert cosine_of(*[{"steps": jnp.arange(3)}] * 3) is None
    for bad in (jnp.nan, jnp.inf):
        assert cosine_of(points[0], points[1], points[2].at[3].set(bad)) is None


def test_a_mask_of_infinities_has_no_say():
    points = stretches(np.random.default_rng(0), (50,), 0.6)
    masked = [{"a": a, "mask": jnp.array([0.0, -jnp.inf])} for a in points]
    assert cosine_of(*masked) == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_what_is_only_decayed_has_no_say(dtype):
    """Decay takes it straight to zero, and for ever: a cosine of 1."""
    rng = np.random.default_rng(0)
    points, idle = stretches(rng, (50,), 0.1), jnp.asarray(rng.normal(size=(40, 30)), dtype)
    params = [{"a": a, "idle": factor * idle} for a, factor in zip(points, (1, 0.9, 0.8), strict=True)]
    trained = {"a": jnp.ones(50), "idle": idle + 0.1 * jnp.asarray(rng.normal(size=(40, 30)), dtype)}
    assert cosine_of(*params, steps=trained) > 0.8
    assert cosine_of(*params, steps=trained | {"idle": (-1e-4 * idle).astype(dtype)}) == pytest.approx(0.1, abs=1e-3)


def test_what_is_zero_or_stands_still_makes_no_nan():
    """Outside of `jit`, `jax_debug_nans` would stop at one."""
    params = {"zero": jnp.zeros(3), "still": jnp.ones(3), "moving": jnp.ones(3)}
    steps = {"zero": jnp.ones(3), "still": jnp.zeros(3), "moving": -jnp.ones(3)}
    tx, value_fn = held(), lambda p: sum(map(jnp.sum, p.values()))
    with jax.debug_nans(True):
        state = tx.init(params)._replace(count=jnp.int32(START - 1))
        _, state = tx.update(steps, state, params, value_fn=value_fn, value=value_fn(params))
    assert state.alignment.marks.any()


def test_steps_away_from_zero_and_those_of_a_single_number_count():
    points = [{"a": jnp.array(a), "b": jnp.array([a])} for a in (1.0, 2.0, 4.0)]
    assert cosine_of(*points, steps=jax.tree.map(jnp.negative, points[0])) == pytest.approx(1)
    points = [a * jnp.ones(9) for a in (1.0, 2.0, 4.0)]
    assert cosine_of(*points, steps=points[0]) == pytest.approx(1)
    assert cosine_of(*points, steps=-points[0]) is None


@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1e18, 1e30])
def test_no_unit_is_too_small_or_too_large(unit):
    points = stretches(np.random.default_rng(0), (50,), 0.6)
    points = [{"a": unit * (a - points[0]), "b": b} for a, b in zip(points, points, strict=True)]
    assert cosine_of(*points) == pytest.approx(0.6, abs=1e-3)


def test_sums_are_no_more_than_an_array_has_entries():
    params = {"a": jnp.zeros(()), "b": jnp.zeros((3, 4)), "c": jnp.zeros((0, 2))}
    assert _alignment.init(params).marks.shape == (2, 3, 12)
    assert _alignment.init(params | {"d": jnp.zeros((2, 5000))}).marks.shape == (2, 4, 256)
    assert _alignment.init({"a": jnp.zeros(3, complex)}).marks.shape == (2, 1, 6)
    assert _alignment.init({}).marks.shape == (2, 0, 0)


def test_complex_and_short_numbers():
    rng = np.random.default_rng(0)
    parts = [stretches(rng, (40,), 0.7) for _ in range(2)]
    assert cosine_of(*[a + 1j * b for a, b in zip(*parts, strict=True)]) == pytest.approx(0.7, abs=0.3)
    assert cosine_of(*[1j * b for b in parts[1]]) == pytest.approx(0.7, abs=1e-3)
    direction = jnp.asarray(rng.normal(size=400), jnp.float32)
    quarter_turn = [0 * direction, direction, (1 + 1j) * direction]
    assert cosine_of(*map(jnp.asarray, quarter_turn)) == pytest.approx(0, abs=0.25)
    points = [(x - parts[0][0]).astype(jnp.bfloat16) for x in parts[0]]
    assert cosine_of(*points) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("weight_decay", [1e-4, 1e-2])
def test_an_array_without_a_gradient_changes_nothing(weight_decay):
    """A backbone behind stop_gradient among the parameters, with the usual weight decay."""
    x = jax.random.normal(jax.random.key(0), (512, 32, 4))
    idle = jax.random.normal(jax.random.key(1), (200, 8))

    def loss(params, x):
        return jnp.mean((x @ params["w"] - jnp.sin(x[:, 0])) ** 2)

    def run(params):
        tx = gen_optax.gen_adamw(weight_decay=weight_decay)

        def step(carry, x):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, x)
            updates, state = tx.update(grads, state, params, value=value, value_fn=loss, x=x)
            return (optax.apply_updates(params, updates), state), gen_state(state).learning_rate

        return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), x)[1])()

    w = jnp.zeros(4)
    np.testing.assert_allclose(run({"w": w, "idle": idle}), run({"w": w}), rtol=1e-4)


@dataclasses.dataclass(frozen=True)
class Heard(gen_optax.Controller):
    """Remembers the last alignment; 9 at first."""

    aligns = True

    def init(self, dtype):
        return jnp.ones((), dtype), jnp.full((), 9, dtype)

    def observe(self, learning_rate, state, measurement, status, context):
        return learning_rate, state

    def align(self, state, alignment):
        return alignment


def told(direction, calls, tx, value_fn=lambda w: jnp.sum(w), seen=lambda gen: gen.controller):
    """What is seen after each call of a run whose steps are given."""
    w = jnp.zeros(2)

    def step(carry, t):
        w, state = carry
        updates, state = tx.update(direction(t), state, w, value_fn=value_fn, value=value_fn(w))
        return (w + updates, state), seen(gen_state(state))

    return jax.tree.map(np.asarray, jax.lax.scan(step, (w, tx.init(w)), jnp.arange(1, calls + 1))[1])


def turning(t):
    """Steps to the right up to call 192, upward from there, to the left from 256 and to the right again from 384 on."""
    which = jnp.sum(t >= jnp.array([TURN, END, 384]))
    return jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])[which]


def test_it_is_looked_at_where_the_run_has_doubled():
    heard = told(turning, 600, gen_optax.scale_by_gen(controller=Heard()))
    assert set(heard[: END - 1]) == {9.0}
    np.testing.assert_allclose(heard[END - 1 : 511], 0, atol=1e-5)
    np.testing.assert_allclose(heard[511:], -1, atol=1e-5)


def test_not_once_a_decay_has_begun():
    heard = told(turning, 600, gen_optax.scale_by_gen(controller=Heard(), num_steps=600))
    np.testing.assert_allclose(heard[END - 1 :], 0, atol=1e-5)  # 512 is beyond three quarters
    decay = optax.cosine_decay_schedule(1.0, 600)
    assert set(told(turning, 600, gen_optax.scale_by_gen(controller=Heard(), decay=decay))) == {9.0}


def held(**settings):
    return gen_optax.scale_by_gen(controller=gen_optax.balance(0.01, search_probes=0, **settings))


def rate_and_wish(gen):
    return gen.learning_rate, gen.controller.wish


@pytest.mark.parametrize(("alignment", "wish"), [(0.2, np.log(3)), (0.9, 0.3), (1.2, -0.6), (None, 0.0)])
def test_balance_makes_it_a_wish(alignment, wish):
    """Where the loss says nothing, no probe fulfils it."""
    says_nothing = held(alignment=alignment)
    rates, wishes = told(
        lambda _: jnp.ones(2), 300, says_nothing, lambda w: jnp.float32(3.0) + 0 * jnp.sum(w), rate_and_wish
    )
    np.testing.assert_allclose(rates, 0.01, rtol=1e-6)
    np.testing.assert_allclose(wishes, wish * (np.arange(1, 301) >= END), rtol=1e-4, atol=1e-6)


def test_probes_fulfil_a_wish_and_no_more():
    """All of it in the end, beside what they say themselves."""
    loss = {"value_fn": lambda w: jnp.sum((w - 1e4) ** 2), "seen": rate_and_wish}
    rates, wishes = told(lambda _: jnp.ones(2), 2047, held(), **loss)
    plain, _ = told(lambda _: jnp.ones(2), 2047, held(alignment=None, max_change=2.0), **loss)
    assert wishes[END - 1] == pytest.approx(np.log(3))
    assert 0 < wishes[510] < 0.3 * wishes[END - 1]
    gained = np.log(rates[510] / plain[510])
    assert gained == pytest.approx(wishes[END - 1] - wishes[510], rel=0.02)


def test_without_it_nothing_is_kept():
    assert held(alignment=None).init(jnp.zeros(2)).alignment == ()
    assert gen_optax.scale_by_gen(controller=gen_optax.algorithm_1()).init(jnp.zeros(2)).alignment == ()


@pytest.mark.parametrize("cosine", [-1.0, -0.1, 0.2, 0.4, 1.0])
def test_the_documented_wish(cosine):
    controller = gen_optax.balance()
    found = controller.align(controller.init(jnp.float32)[1], jnp.float32(cosine)).wish
    assert found == pytest.approx(rule_of(DOCSTRING, "wish_for")(cosine), rel=1e-5, abs=1e-6)


def test_not_in_the_search():
    """A search that goes on beyond, on the way to a minimum that is far off."""
    tx = gen_optax.scale_by_gen(controller=gen_optax.balance(search_probes=1000, max_change=1.0001))
    _, wishes = told(lambda _: jnp.ones(2), 300, tx, lambda w: jnp.sum((w - 1e4) ** 2), rate_and_wish)
    assert not wishes.any()


def test_steps_that_overshoot_end_a_wish_for_more():
    def cliff(at):
        return lambda w: jnp.where(w[0] > at, jnp.float32(3.0) + 0 * w[0], jnp.nan)

    def run(at, calls):
        """The loss is NaN at the first call whose parameters are beyond."""
        return told(lambda _: jnp.array([-0.5, 0.0]), calls, held(), cliff(at), rate_and_wish)

    rates, wishes = run(-1.272, END)  # call 256
    assert rates[-1] == pytest.approx(0.1 * rates[0])
    assert wishes[-1] == 0
    _, wishes = run(-1.302, 270)  # some calls later
    assert wishes[END - 1] > 1
    assert wishes[-1] == 0
