"""`loss_context`: a loss for an `update` that a framework calls does what the arguments of `update` do."""

import asyncio
import concurrent.futures
import functools
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import gen_state, greedy, network, network_loss, settings_of

import gen_optax
from gen_optax import _loss

PARAMS, BATCH = network()
W = jnp.zeros(3)
RULES = {"default": {}, "exact": settings_of("exact", 0.1), "three points": settings_of("three points", 0.1)}
EXACT = gen_optax.scale_by_gen(probe=gen_optax.exact(), **greedy(0.1))  # `info.curvature` tells losses apart


def loss_fn(params):
    return network_loss(params, **BATCH)


def bowl(w, curvature=2.0):
    return curvature / 2 * jnp.sum((w - 1.0) ** 2)


def of_curvature(curvature):
    return functools.partial(bowl, curvature=curvature)


def seen(built=None, **arguments):
    """What `update` of a `scale_by_gen(value_fn=built)` takes for the loss, by its curvature, and for `value`."""
    loss, value, _ = _loss.arguments(arguments, built)
    return float(loss(jnp.zeros(2))), value


def curvature_seen(built=None, **arguments):
    return seen(built, **arguments)[0]


def framework_step(tx, params, state, grads):
    """What a framework does: no extra argument."""
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def steps(tx, number, by_argument, value=True, loss_fn=loss_fn, params=PARAMS, wrap=None, scale=1.0):
    """The parameters and the state after so many jitted steps; `wrap` makes the loss from the parameters."""

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        grads = jax.tree.map(lambda g: scale * g, grads)
        given = {"value_fn": wrap(loss_fn, params) if wrap else loss_fn} | ({"value": loss} if value else {})
        if by_argument:
            updates, state = tx.update(grads, state, params, **given)
            return optax.apply_updates(params, updates), state
        with gen_optax.loss_context(**given):
            return framework_step(tx, params, state, grads)

    state = tx.init(params)
    for _ in range(number):
        params, state = step(params, state)
    return params, state


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "value"), [("default", True), ("exact", True), ("exact", False), ("three points", True)]
)
def test_it_does_what_the_arguments_do(rule, value):
    tx = optax.chain(optax.adam(1.0), gen_optax.scale_by_gen(**RULES[rule], every=4))
    found, expected = (steps(tx, 9, by_argument, value) for by_argument in (False, True))
    assert_same(found, expected)
    assert gen_state(found[1]).info.num_probes >= 2
    assert gen_state(found[1]).learning_rate > 0


def test_gen_reads_it():
    tx = gen_optax.gen_adam()
    found, expected = (steps(tx, 5, by_argument, value=False) for by_argument in (False, True))
    assert_same(found, expected)
    assert gen_state(found[1]).learning_rate > 0


def program(by_argument, opens):
    tx = gen_optax.gen_adam()

    def step(params, state):
        value, grads = jax.value_and_grad(loss_fn)(params)
        if by_argument and not opens:
            return tx.update(grads, state, params, value_fn=loss_fn)
        with gen_optax.loss_context(loss_fn, value=value if by_argument else None):
            return tx.update(grads, state, params, **({"value_fn": loss_fn} if by_argument else {}))

    return str(jax.make_jaxpr(step)(PARAMS, tx.init(PARAMS)))


def test_it_leaves_nothing_in_the_program():
    """Neither where it is read nor where it is open and not read."""
    expected = re.sub(r"0x\w+", "", program(by_argument=True, opens=False))
    for by_argument in (True, False):
        assert re.sub(r"0x\w+", "", program(by_argument, opens=True)) == expected


def test_arguments_win_over_the_block_and_the_block_over_construction():
    built = of_curvature(3.0)
    assert curvature_seen(built) == 3
    with gen_optax.loss_context(of_curvature(4.0)):
        assert curvature_seen() == curvature_seen(built) == 4
        for name in ("value_fn", "obj_fn"):
            assert curvature_seen(built, **{name: of_curvature(5.0)}) == 5
        assert curvature_seen(built, value_fn=None, obj_fn=None) == 4


def test_a_value_belongs_to_its_loss():
    """One among the arguments wins, and that of a block counts for no other loss."""
    with gen_optax.loss_context(of_curvature(4.0), 7.0):
        assert seen() == (4, 7)
        for name in ("value", "loss"):
            assert seen(**{name: 6.0}) == (4, 6)
            assert seen(**{name: None}) == (4, 7)
            assert seen(value_fn=of_curvature(5.0), **{name: 6.0}) == (5, 6)
        assert seen(value_fn=of_curvature(5.0)) == seen(obj_fn=of_curvature(5.0)) == (5, None)


def test_extra_arguments_reach_the_loss_by_name():
    seen = {}

    def value_fn(w, scale, *, flag="default", **rest):
        seen.update(rest, scale=scale, flag=flag)
        return scale * bowl(w)

    with gen_optax.loss_context(value_fn, 6.0):
        assert curvature_seen(scale=2.0, batch=7) == 4
        assert seen == {"scale": 2.0, "flag": "default", "batch": 7}
        with pytest.raises(ValueError, match="value_fn needs the argument scale"):
            curvature_seen()


def test_what_is_no_loss():
    with (
        pytest.raises(TypeError, match=r"loss_context takes a function of the parameters.*got a float(.|\n)*second"),
        gen_optax.loss_context(3.0),
    ):
        pass
    with gen_optax.loss_context(bowl, jnp.ones(3)), pytest.raises(ValueError, match=r"value must be a real scalar"):
        curvature_seen()


# --- where it ends ---------------------------------------------------------------------------------------------------

MISSING = r"pass value_fn=loss_fn to update"


def test_blocks_nest():
    with gen_optax.loss_context(of_curvature(3.0)):
        with gen_optax.loss_context(of_curvature(4.0)):
            assert curvature_seen() == 4
        assert curvature_seen() == 3
        with pytest.raises(KeyError, match="mine"), gen_optax.loss_context(of_curvature(5.0)):
            raise KeyError("mine")
        assert curvature_seen() == 3
    with pytest.raises(ValueError, match=MISSING):
        curvature_seen()


def test_a_missing_loss_shows_the_three_ways():
    with pytest.raises(ValueError, match=MISSING) as caught:
        gen_optax.gen_adam().update(W, gen_optax.gen_adam().init(W), W)
    for way in (
        "updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn, batch=batch)",
        "tx = gen_optax.gen(base, value_fn=loss_fn)",
        "with gen_optax.loss_context(loss_fn, value):\n        state = state.apply_gradients(grads=grads)",
    ):
        assert f"\n    {way}" in str(caught.value)


def test_threads_do_not_see_each_others():
    barrier = threading.Barrier(3, timeout=60)

    def train(curvature):
        with gen_optax.loss_context(of_curvature(curvature)):
            barrier.wait()  # all blocks are open
            try:
                return curvature_seen()
            finally:
                barrier.wait()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = [pool.submit(train, curvature) for curvature in (3.0, 4.0)]
        barrier.wait()
        try:
            with pytest.raises(ValueError, match=MISSING):
                curvature_seen()
        finally:
            barrier.wait()
        assert [curvature.result() for curvature in found] == [3, 4]


def test_asyncio_tasks_do_not_see_each_others():
    async def train(curvature, barrier):
        with gen_optax.loss_context(of_curvature(curvature)):
            await barrier.wait()  # both blocks are open
            found = curvature_seen()
            await barrier.wait()
            return found

    async def main():
        barrier = asyncio.Barrier(2)
        return await asyncio.gather(train(3.0, barrier), train(4.0, barrier))

    assert asyncio.run(main()) == [3, 4]


def test_no_tracer_outlives_the_trace():
    tx = gen_optax.scale_by_gen(**settings_of("three points", 0.1))
    with jax.checking_leaks():
        _, state = steps(tx, 1, by_argument=False)
    assert gen_state(state).count == 1


# --- traces ----------------------------------------------------------------------------------------------------------

OUTSIDE = r"(?s)opened outside of the function that is traced.*\n    with gen_optax\.loss_context.*gen\(base, value_fn="


@pytest.mark.parametrize(
    "transform",
    [
        jax.jit,
        lambda f: functools.partial(jax.lax.cond, True, f, f),
        lambda f: lambda w: jax.lax.scan(lambda w, _: (f(w), None), w, length=2)[0],
        lambda f: jax.jit(jax.vmap(f, axis_size=2, in_axes=None)),
    ],
    ids=["jit", "cond", "scan", "vmap in jit"],
)
def test_outside_of_what_is_compiled(transform):
    """The compiled program would keep the loss and its batch."""

    def update(w):
        return EXACT.update(w + 1, EXACT.init(w), w)[0]

    with gen_optax.loss_context(bowl), pytest.raises(ValueError, match=OUTSIDE):
        transform(update)(W)


def test_outside_of_a_trace_that_compiles_nothing():
    def loss(w):
        return _loss.arguments({}, None)[0](w)

    with gen_optax.loss_context(of_curvature(4.0)):
        np.testing.assert_array_equal(jax.vmap(loss)(jnp.zeros((3, 2))), [4, 4, 4])
        assert jax.value_and_grad(loss)(jnp.zeros(2))[0] == 4
        with jax.disable_jit():
            assert jax.jit(loss)(jnp.zeros(2)) == 4


def test_around_control_flow_in_the_same_program():
    """As an argument, it may be used further inside."""

    @jax.jit
    def step(w, curvature):
        with gen_optax.loss_context(of_curvature(curvature)):
            state = EXACT.init(w)
            return jax.lax.cond(w[0] > -1, lambda: EXACT.update(w + 1, state, w)[1], lambda: state).info.curvature

    assert step(W, 3.0) == 9


def test_outside_of_the_trace_that_it_was_opened_in():
    """A generator that waits inside of its block keeps it open for its caller."""

    def opening(scale):
        with gen_optax.loss_context(lambda w: scale * bowl(w)):
            yield

    generators = []

    @jax.jit
    def trace(scale):
        generators.append(opening(scale))
        next(generators[0])
        return scale

    trace(2.0)
    with pytest.raises(ValueError, match=r"(?s)opened while jax traced a function.*with gen_optax\.loss_context"):
        curvature_seen()
    next(generators[0], None)
    with pytest.raises(ValueError, match=MISSING):
        curvature_seen()


def test_a_program_inside_keeps_no_loss_of_another_trace():
    """A jitted function inside of the block is traced once: jax reports what it has kept."""
    inner = jax.jit(lambda w: EXACT.update(w + 1, EXACT.init(w), w)[1].info.curvature)

    @jax.jit
    def step(w, batch):
        with gen_optax.loss_context(of_curvature(jnp.sum(batch))):
            return inner(w)

    assert step(W, jnp.ones(3)) == 9
    with pytest.raises(jax.errors.UnexpectedTracerError):
        step(W, jnp.ones(4))


def test_a_program_that_is_compiled_does_not_see_it():
    """What jax does not run again in Python cannot ask."""
    tx = gen_optax.scale_by_gen(probe=gen_optax.exact(), value_fn=of_curvature(3.0), **greedy(0.1))
    update = jax.jit(lambda w: tx.update(jnp.eye(3)[0], tx.init(w), w)[1].info.curvature)
    assert update(W) == 3
    with gen_optax.loss_context(of_curvature(4.0)):
        assert update(W) == 3


# --- in company ------------------------------------------------------------------------------------------------------

LABELS = {"layer0": "freeze", "layer1": "train"}
QUICK = settings_of("three points", 0.1) | {"every": 1}
TRAINED = jax.tree.map(lambda label: label == "train", LABELS)


@pytest.mark.parametrize(
    ("around", "wrap"),
    [
        (lambda inner: optax.masked(inner, TRAINED), gen_optax.unmasked_value_fn),
        (
            lambda inner: optax.partition({"train": inner, "freeze": optax.set_to_zero()}, LABELS),
            gen_optax.unmasked_value_fn,
        ),
        (lambda inner: optax.chain(optax.clip_by_global_norm(0.1), inner), None),
        (lambda inner: optax.apply_if_finite(inner, 3), None),
    ],
    ids=["masked", "partition", "chain", "apply_if_finite"],
)
def test_inside_of_wrappers(around, wrap):
    tx = around(gen_optax.gen(optax.sgd(1.0), **QUICK))
    found, expected = (steps(tx, 3, by_argument, value=False, wrap=wrap) for by_argument in (False, True))
    assert_same(found, expected)
    assert gen_state(found[1]).info.num_probes == 3


@pytest.mark.parametrize("plain", [False, True], ids=["MultiSteps", "gradient_transformation()"])
def test_inside_of_multi_steps(plain):
    """Also of the form that drops what `update` is given."""
    accumulating = optax.MultiSteps(gen_optax.gen(optax.sgd(1.0), **QUICK), 2)
    with pytest.warns(UserWarning, match="inside optax.MultiSteps"):
        found = steps(accumulating.gradient_transformation() if plain else accumulating, 4, by_argument=False)
    with pytest.warns(UserWarning, match="inside optax.MultiSteps"):
        expected = steps(accumulating, 4, by_argument=True)
    assert_same(found, expected)
    assert gen_state(found[1]).info.num_probes == 2


@pytest.mark.parametrize("clips", ["framework", "chain", "base"])
def test_the_slope_is_never_that_of_a_clipped_gradient(clips):
    """`-G.u` with the raw G: here `u` is the clipped gradient and hence much shorter."""
    clip = optax.clip_by_global_norm(1e-3)
    probe = gen_optax.scale_by_gen(probe=gen_optax.exact(), **greedy(0.1))
    tx, scale = {
        "framework": (gen_optax.gen(optax.sgd(1.0), probe=gen_optax.exact(), **greedy(0.1)), 1e-3),
        "chain": (optax.chain(clip, optax.sgd(1.0), probe), 1.0),
        "base": (gen_optax.gen(optax.chain(clip, optax.sgd(1.0)), probe=gen_optax.exact(), **greedy(0.1)), 1.0),
    }[clips]
    _, state = steps(tx, 1, by_argument=False, scale=scale)
    norm = optax.tree.norm(jax.grad(loss_fn)(PARAMS))
    expected = 1e-3 * norm * (norm if clips == "framework" else 1)
    np.testing.assert_allclose(gen_state(state).info.slope, expected, rtol=1e-4)


def test_a_slope_from_the_gradient_is_refused():
    """Nobody knows what a framework has done to it; where `update` is given `value`, its caller does."""
    tx = gen_optax.gen(optax.sgd(1.0), probe=gen_optax.finite_difference(free_slope=True), **greedy(0.1))
    assert gen_state(steps(tx, 1, by_argument=True)[1]).info.num_probes == 1
    with pytest.raises(ValueError, match=r"free_slope=True\) needs grad=\.\.\., the gradient of value_fn before any"):
        steps(tx, 1, by_argument=False)


def test_other_transformations_keep_their_own_errors():
    """A line search reads its own arguments only."""
    tx = optax.chain(gen_optax.gen(optax.sgd(1.0), **QUICK), optax.scale_by_backtracking_linesearch(5))
    with pytest.raises(TypeError, match="missing 3 required keyword-only arguments"):
        steps(tx, 1, by_argument=False)


def test_a_whole_run_in_one_scan():
    """The framework's step inside of `lax.scan`, its state donated, a batch at each step."""
    tx = gen_optax.gen_sgd()
    batches = 3.0 + 0.1 * jax.random.normal(jax.random.key(0), (200, 8, 3))

    def step(carry, batch):
        def loss_fn(w):
            return jnp.mean((w - batch) ** 2)

        value, grads = jax.value_and_grad(loss_fn)(carry[0])
        with gen_optax.loss_context(loss_fn, value):
            return framework_step(tx, *carry, grads), value

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, batches), donate_argnums=0)
    w = jnp.zeros(3)
    (w, state), values = run((w, tx.init(w)))
    assert gen_state(state).count == 200
    assert values[-1] < 0.02 < 5 < values[0]
