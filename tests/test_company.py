"""GeN among optax's wrappers: what works gives the right learning rate, what does not says why."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    flat,
    gen_state,
    greedy,
    network,
    network_loss,
    numpy_network_loss,
    paths_and_types,
    random_quadratic,
    train,
)

import gen_optax

EXACT = gen_optax.exact()
ONCE = greedy(0.1) | {"probe": EXACT}


def problem():
    """Parameters, batch, and the float64 gradient."""
    params, batch = network()
    _, gradient = numpy_network_loss(flat(params), *(np.asarray(batch[i], np.float64) for i in "xy"))
    return params, batch, gradient


def first_step(tx, params, batch):
    """The updates of one call with all that update takes, and the state after it."""
    tx = optax.with_extra_args_support(tx)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(network_loss)(params, **batch)
        return tx.update(grads, state, params, value=value, value_fn=network_loss, **batch)

    return step(params, tx.init(params))


def best_rate(params, batch, updates):
    """b / A along updates, from float64 gradients at two points."""
    u, w, args = flat(updates), flat(params), [np.asarray(batch[i], np.float64) for i in "xy"]
    h = 1e-5

    def slope(t):
        _, gradient = numpy_network_loss([p + t * d for p, d in zip(w, u, strict=True)], *args)
        return sum(np.vdot(g, d) for g, d in zip(gradient, u, strict=True))

    return -slope(0) / ((slope(h) - slope(-h)) / (2 * h))


# --- clipping, weight decay, EMA ------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", [gen_optax.finite_difference(free_slope=True), EXACT])
def test_clipping_before(probe):
    """The rate makes up for the clipping, so its slope must be that of the raw gradient."""
    params, batch, gradient = problem()
    options = greedy(1.0) | {"probe": probe}
    clipped = optax.chain(optax.clip_by_global_norm(1e-2), optax.sgd(1.0))
    _, state = first_step(gen_optax.gen(clipped, **options), params, batch)
    norm = np.sqrt(sum(np.vdot(g, g) for g in gradient))
    np.testing.assert_allclose(gen_state(state).info.slope, 1e-2 * norm, rtol=1e-4)
    _, plain = first_step(gen_optax.gen(optax.sgd(1.0), **ONCE), params, batch)
    if probe is EXACT:
        rates = [gen_state(s).learning_rate for s in (state, plain)]
        np.testing.assert_allclose(rates[0] * 1e-2 / norm, rates[1], rtol=1e-3)


def test_weight_decay_with_a_mask_is_part_of_the_direction():
    params, batch, gradient = problem()
    params = jax.tree.map(lambda p: p + 0.5, params)
    _, gradient = numpy_network_loss(flat(params), *(np.asarray(batch[i], np.float64) for i in "xy"))

    def mask(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    base = optax.chain(optax.add_decayed_weights(0.3, mask), optax.sgd(1.0))
    updates, state = first_step(gen_optax.gen(base, **ONCE), params, batch)
    u = [-(g + 0.3 * w * (w.ndim > 1)) for g, w in zip(gradient, flat(params), strict=True)]
    info = gen_state(state).info
    np.testing.assert_allclose(info.slope, -sum(np.vdot(g, d) for g, d in zip(gradient, u, strict=True)), rtol=1e-4)
    for found, right in zip(flat(updates), u, strict=True):
        np.testing.assert_allclose(found, gen_state(state).learning_rate * right, rtol=1e-4, atol=1e-6)


def test_average_of_the_parameters_beside_training():
    params, batch, _ = problem()
    tx = gen_optax.gen_sgd(controller=gen_optax.balance(init_learning_rate=0.1))

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state, ema = carry
            value, grads = jax.value_and_grad(network_loss)(params, **batch)
            updates, state = tx.update(grads, state, params, value=value, value_fn=network_loss, **batch)
            params = optax.apply_updates(params, updates)
            return (params, state, optax.incremental_update(params, ema, 0.1)), params

        return jax.lax.scan(step, (params, tx.init(params), params), length=20)

    (last, _, ema), path = run(params)
    expected, points = flat(params), flat(path)
    for t in range(20):
        expected = [0.9 * e + 0.1 * p[t] for e, p in zip(expected, points, strict=True)]
    for found, right in zip(flat(ema), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-6)
    alone = train(tx, params, network_loss, 20, **batch)[0]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), last, alone)


# --- inject_hyperparams ---------------------------------------------------------------------------------------------


def test_inject_hyperparams_around_gen():
    """Scheduled and constant numbers, functions named as static: the run is the one without injection."""
    params, batch, _ = problem()

    def make(base, sigma, every, max_learning_rate, value_fn):
        controller = gen_optax.balance(init_learning_rate=0.1, sigma=sigma, search_probes=4)
        bounds = {"max_learning_rate": max_learning_rate}
        return gen_optax.gen(base, controller=controller, every=every, value_fn=value_fn, **bounds)

    options = dict(base=optax.sgd(1.0), every=2, value_fn=lambda w: 0.0)
    injected = optax.inject_hyperparams(make, static_args=("value_fn", "every"))
    tx = injected(**options, sigma=lambda t: 1.0 + 0 * t, max_learning_rate=lambda t: 10.0 + 0 * t)
    found, state, _, states = train(tx, params, network_loss, 20, **batch)
    expected, _, _, plain = train(make(**options, sigma=1.0, max_learning_rate=10.0), params, network_loss, 20, **batch)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, expected)
    np.testing.assert_allclose(gen_state(states).learning_rate, gen_state(plain).learning_rate, rtol=1e-5)
    assert gen_state(state).info.num_probes == 4 + 8  # calls 2 to 5, and 6, 8, ..., 20
    assert state.hyperparams["max_learning_rate"] == 10


def test_a_hyperparameter_changed_in_the_state():
    params, batch, _ = problem()
    controller = gen_optax.algorithm_1(init_learning_rate=0.1)
    tx = optax.inject_hyperparams(gen_optax.scale_by_gen)(controller=controller, max_learning_rate=10.0, probe=EXACT)
    tx = optax.chain(optax.sgd(1.0), tx)
    state = tx.init(params)
    step = jax.jit(functools.partial(tx.update, value_fn=functools.partial(network_loss, **batch)))
    state[1].hyperparams["max_learning_rate"] = jnp.float32(1e-3)
    for _ in range(8):
        _, state = step(jax.grad(network_loss)(params, **batch), state, params)
    assert gen_state(state).learning_rate == np.float32(1e-3)


def test_inject_hyperparams_in_the_base():
    """A scheduled weight decay; the base has a learning_rate of its own in the state, metrics knows which is which."""
    params, batch, _ = problem()
    base = optax.inject_hyperparams(optax.adamw)(1.0, weight_decay=optax.linear_schedule(0.1, 0.0, 10))
    params, state, losses, _ = train(gen_optax.gen(base), params, network_loss, 30, **batch)
    assert losses[-1] < losses[0]
    assert gen_optax.metrics(state)["learning_rate"] == gen_state(state).learning_rate > 0


# --- apply_if_finite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "probe"),
    [("around", None), ("inside", None), ("around", EXACT), ("inside", gen_optax.finite_difference())],
)
def test_a_nan_batch_changes_nothing_and_training_recovers(order, probe):
    params, batch, _ = problem()
    make = gen_optax.algorithm_1 if probe else gen_optax.balance
    options = dict(probe=probe, controller=make(init_learning_rate=0.05), every=1)
    if order == "around":
        tx = optax.apply_if_finite(gen_optax.gen(optax.adam(1.0), **options), 5)
    else:
        tx = gen_optax.gen(optax.apply_if_finite(optax.adam(1.0), 5), **options)

    @jax.jit
    def step(params, state, x):
        value, grads = jax.value_and_grad(network_loss)(params, x, batch["y"])
        updates, state = tx.update(grads, state, params, value=value, value_fn=network_loss, x=x, y=batch["y"])
        return optax.apply_updates(params, updates), state, value

    state = tx.init(params)
    for _ in range(5):
        params, state, value = step(params, state, batch["x"])
    before = params, gen_state(state), value
    params, state, value = step(params, state, batch["x"].at[0].set(np.nan))
    assert np.isnan(value)
    jax.tree.map(np.testing.assert_array_equal, params, before[0])
    assert gen_state(state).learning_rate == before[1].learning_rate
    assert gen_state(state).info.num_accepted == before[1].info.num_accepted
    if order == "around":
        jax.tree.map(np.testing.assert_array_equal, gen_state(state), before[1])
    for _ in range(40):
        params, state, value = step(params, state, batch["x"])
    assert value < before[2]
    assert gen_state(state).info.num_accepted > before[1].info.num_accepted
    assert np.isfinite(gen_state(state).learning_rate)


# --- reduce_on_plateau ----------------------------------------------------------------------------------------------


def plateau(**options):
    return optax.contrib.reduce_on_plateau(patience=0, accumulation_size=1, rtol=0.0, atol=1e9, **options)


def test_reduce_on_plateau_behind():
    """It scales the step that GeN found, and GeN does not make up for it: both read `value`."""
    params, batch, _ = problem()
    tx = optax.chain(gen_optax.gen(optax.sgd(1.0), **ONCE), plateau(factor=0.5))
    step = jax.jit(functools.partial(tx.update, value_fn=network_loss))
    value_and_grad = jax.jit(jax.value_and_grad(network_loss))
    state = tx.init(params)
    for _ in range(3):
        value, grads = value_and_grad(params, **batch)
        updates, state = step(grads, state, params, value=value, **batch)
        direction = jax.tree.map(jnp.negative, grads)
        eta = best_rate(params, batch, direction)
        np.testing.assert_allclose(gen_state(state).learning_rate, eta, rtol=1e-3)
        for found, right in zip(flat(updates), flat(direction), strict=True):
            np.testing.assert_allclose(found, eta * float(state[1].scale) * right, rtol=2e-3, atol=1e-6)
        params = optax.apply_updates(params, updates)
    assert state[1].scale < 1


def test_reduce_on_plateau_in_the_base_is_refused():
    base = optax.chain(optax.sgd(1.0), plateau(factor=0.5))
    with pytest.raises(ValueError, match=r"reduce_on_plateau.*Put it behind"):
        gen_optax.gen(base).init(jnp.zeros(3))


# --- schedule_free --------------------------------------------------------------------------------------------------


def noisy(seed, size=20):
    """A quadratic whose batches pull it about, and its true loss: a floor that averaging lowers."""
    quadratic = random_quadratic(seed, size=size, condition=30.0)
    hessian = jnp.asarray(quadratic.hessian, jnp.float32)

    def loss_fn(w, shift):
        difference = w - shift
        return 0.5 * difference @ hessian @ difference

    shifts = jax.random.normal(jax.random.key(seed), (600, size))
    return loss_fn, shifts - jnp.mean(shifts, 0), jnp.full(size, 10.0)


def train_on(tx, loss_fn, batches, params, pick=lambda params: params):
    tx = optax.with_extra_args_support(tx)

    def step(carry, shift):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(pick(params), shift)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn, shift=shift)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        return jax.lax.scan(step, (params, tx.init(params)), batches)[0]

    return run(params)


def test_schedule_free_around_gen():
    """As good as the best of a grid of constant rates, at the averaged parameters."""
    loss_fn, batches, start = noisy(0)
    evaluate = optax.contrib.schedule_free_eval_params

    def final(base, learning_rate):
        params, state = train_on(optax.contrib.schedule_free(base, learning_rate), loss_fn, batches, start)
        return loss_fn(evaluate(state, params), 0.0), state

    grid = jax.jit(jax.vmap(lambda rate: final(optax.sgd(rate), rate)[0]))(10.0 ** jnp.arange(-3, 1.1, 0.5))
    tuned = jnp.nanmin(grid)
    found, state = final(gen_optax.gen_sgd(controller=gen_optax.balance(alignment=None)), 1.0)
    assert found < 1.3 * tuned
    assert gen_state(state).info.num_accepted > 50


def test_schedule_free_in_the_base_is_refused():
    base = optax.contrib.schedule_free(optax.sgd(1.0), 1.0)
    with pytest.raises(ValueError, match=r"schedule_free.*Turn it inside out.*learning_rate=1.0"):
        gen_optax.gen(base).init(jnp.zeros(3))


# --- lookahead ------------------------------------------------------------------------------------------------------


def looking_ahead(shift=None, probe=None, **options):
    """Built anew in each step: value_fn is closed over the batch, the state is the same."""
    loss_fn, _, _ = noisy(0)
    fast = gen_optax.gen(optax.sgd(1.0), probe=probe, value_fn=lambda w: loss_fn(w, shift), **options)
    return optax.lookahead(fast, sync_period=5, slow_step_size=0.5)


def test_lookahead_around_gen():
    loss_fn, batches, start = noisy(0)
    params = optax.LookaheadParams.init_synced(start)

    def step(carry, shift):
        params, state = carry
        grads = jax.grad(loss_fn)(params.fast, shift)
        updates, state = looking_ahead(shift).update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    params, state = jax.jit(lambda carry: jax.lax.scan(step, carry, batches)[0])((params, looking_ahead().init(params)))
    assert loss_fn(params.slow, 0.0) < 1e-2 * loss_fn(start, 0.0)
    assert gen_state(state).info.num_accepted > 50


def test_lookahead_probes_at_the_fast_parameters():
    loss_fn, batches, start = noisy(0)
    params = optax.LookaheadParams(fast=start, slow=start - 1.0)
    tx = looking_ahead(batches[0], **ONCE)
    _, state = jax.jit(tx.update)(jax.grad(loss_fn)(start, batches[0]), tx.init(params), params)
    np.testing.assert_allclose(gen_state(state).info.value, loss_fn(start, batches[0]), rtol=1e-5)


def test_lookahead_says_why_not():
    """Extra arguments do not get through it; and its pairs must not be scaled."""
    params = optax.LookaheadParams.init_synced(jnp.zeros(3))
    tx = optax.chain(optax.lookahead(gen_optax.gen_sgd(), 5, 0.5))
    with pytest.raises(ValueError, match=r"(?s)drops the extra arguments.*lookahead.*give value_fn to"):
        tx.update(jnp.ones(3), tx.init(params), params, value_fn=jnp.sum)
    fast = optax.lookahead(optax.sgd(1.0), 5, 0.5)
    with pytest.raises(ValueError, match=r"optax.lookahead.*Turn it inside out"):
        gen_optax.gen(fast).init(params)
    tx = optax.chain(fast, gen_optax.scale_by_gen())
    with pytest.raises(ValueError, match=r"LookaheadParams.*Turn it inside out"):
        tx.update(jnp.ones(3), tx.init(params), params, value_fn=jnp.sum)


# --- bases that find a learning rate themselves ---------------------------------------------------------------------


class OwnState(NamedTuple):
    """Of an optimizer that is not optax's."""

    moment: optax.Updates
    lr: jax.Array


def own():
    def init_fn(params):
        return OwnState(params, jnp.zeros(()))

    return optax.GradientTransformation(init_fn, lambda updates, state, params=None: (updates, state))


FIND_A_RATE = {
    "COCOBState": optax.contrib.cocob(),
    "DAdaptAdamWState": optax.contrib.dadapt_adamw(),
    "DoGState": optax.contrib.dog(),
    "DoWGState": optax.contrib.dowg(),
    "GenState": gen_optax.gen(optax.adam(1.0)),
    "MechanicState": optax.contrib.mechanize(optax.sgd(1.0)),
    "MomoAdamState": optax.contrib.momo_adam(),
    "MomoState": optax.contrib.momo(),
    "OwnState": own(),
    "ProdigyState": optax.contrib.prodigy(),
    "ScaleByBacktrackingLinesearchState": optax.scale_by_backtracking_linesearch(15),
    "ScaleByZoomLinesearchState": optax.lbfgs(),
}


@pytest.mark.parametrize("name", FIND_A_RATE)
@pytest.mark.parametrize("within", ["alone", "chain", "masked", "group", "injected"])
def test_a_base_that_finds_a_learning_rate_itself_is_refused(name, within):
    finds = FIND_A_RATE[name]
    base = {
        "alone": finds,
        "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.chain(finds)),
        "masked": optax.masked(finds, {"a": True, "b": False}),
        "group": optax.partition({"x": finds, "y": optax.sgd(1.0)}, {"a": "x", "b": "y"}),
        "injected": optax.inject_hyperparams(lambda clip: optax.chain(optax.clip(clip), finds))(clip=1.0),
    }[within]
    message = rf"its state has a {name}, so it finds a learning rate itself.*Choose one.*optax\.adamw\(1\.0\)"
    with pytest.raises(ValueError, match=message):
        gen_optax.gen(base).init({"a": jnp.zeros(3), "b": jnp.zeros(2)})


def test_a_rate_that_is_given_is_not_refused():
    """Also one given by name; and what the error says to write."""
    for base in (optax.inject_hyperparams(optax.adamw)(learning_rate=1.0), optax.lbfgs(1.0, linesearch=None)):
        params, batch, _ = problem()
        _, _, losses, _ = train(gen_optax.gen(base), params, network_loss, 60, **batch)
        assert losses[-1] < 0.5 * losses[0]


# --- sam ------------------------------------------------------------------------------------------------------------


def test_sam_in_its_opaque_mode():
    """The gradient of the perturbed parameters, the loss along the step at the real ones."""
    params, batch, _ = problem()
    loss_fn = functools.partial(network_loss, **batch)
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    tx = optax.contrib.sam(gen_optax.gen(optax.sgd(1.0), value_fn=loss_fn, **ONCE), adversary, opaque_mode=True)

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, grad_fn=lambda w, _: jax.grad(loss_fn)(w))
        return optax.apply_updates(params, updates), state, updates

    start, state = loss_fn(params), tx.init(params)
    before = params
    params, state, updates = step(params, state)
    direction = jax.tree.map(lambda u: u / gen_state(state).learning_rate, updates)
    np.testing.assert_allclose(gen_state(state).learning_rate, best_rate(before, batch, direction), rtol=1e-3)
    for _ in range(30):
        params, state, _ = step(params, state)
    assert loss_fn(params) < 0.5 * start


def test_the_state_stays_of_one_type_in_all_of_them():
    """What would break scan, cond and donation."""
    params, batch, _ = problem()
    for tx in (
        optax.apply_if_finite(gen_optax.gen_sgd(**ONCE), 3),
        optax.chain(gen_optax.gen_sgd(**ONCE), plateau()),
        optax.contrib.schedule_free(gen_optax.gen_sgd(**ONCE), 1.0),
        optax.inject_hyperparams(gen_optax.gen)(base=optax.sgd(1.0), **ONCE),
    ):
        _, state = first_step(tx, params, batch)
        before, after = (paths_and_types(gen_state(s)) for s in (tx.init(params), state))
        assert before == after
