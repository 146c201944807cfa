"""The average of the iterates: what it is, what never enters it, who keeps one, and how it is read."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import gen_state, network, network_loss

import gen_optax
import gen_optax.linen
import gen_optax.nnx
from gen_optax import _average

SIZE = 6


def noisy_loss(w, noise):
    return jnp.sum((w - 3.0 + noise) ** 2)


def noise(call, size=SIZE):
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), call), (size,))


def trained(tx, steps, given=True, loss_fn=noisy_loss, shock=None, wild=-1e6):
    """The parameters that each call was given, and the state after each; `shock`: a call whose gradient is wild."""

    @jax.jit
    def step(w, state, call):
        value, grads = jax.value_and_grad(loss_fn)(w, noise(call))
        if shock is not None:
            grads = jnp.where(call == shock, wild * jnp.ones_like(grads), grads)
        extra = {"value": value} if given else {}
        updates, state = tx.update(grads, state, w, value_fn=loss_fn, noise=noise(call), **extra)
        return optax.apply_updates(w, updates), state

    w = jnp.zeros(SIZE)
    state, iterates, states = tx.init(w), [], []
    for call in range(1, steps + 1):
        iterates.append(np.asarray(w, np.float64))
        w, state = step(w, state, call)
        states.append(state)
    return w, iterates, states


@pytest.mark.parametrize("given", [True, False], ids=["value", "no value"])
def test_it_is_the_weighted_mean_of_the_iterates(given):
    """Those taken in stand for all calls since the one before: the weights are those of `t ** 20`, summed."""
    w, iterates, states = trained(gen_optax.gen(optax.adam(1.0)), 400, given)
    taken = sorted({int(gen_state(state).average.last_call) for state in states} - {0})
    ends = np.array(taken, float) ** 21
    weights = np.diff(ends, prepend=0) / ends[-1]
    expected = sum(weight * iterates[call - 1] for weight, call in zip(weights, taken, strict=True))
    np.testing.assert_allclose(gen_optax.averaged_params(states[-1], w), expected, rtol=1e-5)
    if given:  # at every call up to 256, at every other one up to 512
        assert set(range(100, 256)) < set(taken)


def test_between_probes_it_is_taken_where_the_loss_was_looked_at():
    """Without `value` at every fourth call: other iterates may have overshot, and no one has seen it."""
    _, _, states = trained(gen_optax.gen(optax.adam(1.0)), 400, given=False)
    taken = sorted({int(gen_state(state).average.last_call) for state in states})
    assert set(np.diff(taken[-20:])) == {4}


def test_a_long_run_takes_in_one_in_many():
    """The number grows with the logarithm of the run."""
    calls, state, taken = jnp.arange(1, 100_001), jnp.int32(0), 0

    def scan(count, call):
        due = _average.is_due(_average.AverageState((), count), call)
        return jnp.where(due, call, count), due

    _, due = jax.lax.scan(scan, state, calls)
    taken = int(due.sum())
    assert np.all(np.asarray(due[:256]))
    assert taken <= 256 * (2 + np.log(100_000 / 256))


def test_it_is_better_than_the_iterates_where_they_scatter():
    """At a rate that is held."""
    tx = gen_optax.gen(optax.sgd(1.0), controller=gen_optax.balance(alignment=None))
    w, _, states = trained(tx, 1000)
    average = gen_optax.averaged_params(states[-1], w)
    assert noisy_loss(average, 0) < 0.7 * noisy_loss(w, 0)


@pytest.mark.parametrize("given", [True, False], ids=["value", "no value"])
def test_parameters_that_overshot_never_enter(given):
    """They are 1e4 off; a part of 1e-3 in the average would show."""
    tx = gen_optax.gen(optax.sgd(1.0))
    w, iterates, states = trained(tx, 300, given, shock=242)  # no call at which the loss is looked at without value
    assert max(np.abs(iterate).max() for iterate in iterates) > 1e3
    assert np.abs(gen_optax.averaged_params(states[-1], w) - 3).max() < 1


@pytest.mark.parametrize("given", [True, False], ids=["value", "no value"])
def test_parameters_that_are_nan_never_enter(given):
    tx = gen_optax.gen(optax.sgd(1.0, momentum=0.9))  # the momentum stays NaN
    w, _, states = trained(tx, 300, given, shock=242, wild=jnp.nan)
    assert np.isnan(w).all()
    with pytest.warns(UserWarning, match=r"NaN or infinite at two probes in a row.*apply_if_finite"):
        average = gen_optax.averaged_params(states[-1], w)
    assert np.abs(average - 3).max() < 1


def test_in_a_short_dtype_it_follows_a_long_run():
    """A sample counts for 8 %: to the nearest number, a rest of six last places would never be made up."""
    params = jnp.linspace(1.0, 1.9, 64)
    states = [_average.init(params, dtype)._replace(last_call=jnp.int32(1_000_000)) for dtype in (True, jnp.bfloat16)]

    @jax.jit
    def run(state):
        def step(state, number):
            return _average.update(state, params + 0.05, 1_000_000 + 4_000 * number, True), None

        return jax.lax.scan(step, state, jnp.arange(1, 101))[0].mean

    exact, short = map(run, states)
    assert np.all(exact - params > 0.045)
    assert short.dtype == jnp.bfloat16
    error = short.astype(jnp.float32) - exact
    assert np.abs(error).max() < 4 * 2**-7
    assert abs(error.mean()) < 2**-8


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_it_comes_in_the_dtype_of_the_parameters(dtype):
    params = {"a": jnp.ones(3, dtype), "step": jnp.array(7)}
    tx = gen_optax.scale_by_gen(average=jnp.bfloat16, value_fn=lambda p: jnp.sum(p["a"].astype(jnp.float32) ** 2))
    state = tx.init(params)
    assert state.average.mean["a"].dtype == jnp.bfloat16
    for _ in range(3):
        updates = {"a": -params["a"], "step": jnp.array(0)}
        updates, state = tx.update(updates, state, params)
        params = optax.apply_updates(params, updates)
    average = gen_optax.averaged_params(state, params)
    assert average["a"].dtype == dtype
    assert average["step"].dtype == params["step"].dtype


KEEPERS = {
    "open end": ({}, True),
    "horizon": ({"num_steps": 100}, False),
    "decay": ({"decay": optax.constant_schedule(1.0)}, False),
    "paper": ({"controller": gen_optax.algorithm_1()}, False),
    "horizon, asked for": ({"num_steps": 100, "average": True}, True),
    "paper, asked for": ({"controller": gen_optax.algorithm_1(), "average": True}, True),
    "switched off": ({"average": False}, False),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_who_keeps_one(name):
    options, kept = KEEPERS[name]
    tx = gen_optax.gen(optax.adam(1.0), **options)
    w, _, states = trained(tx, 40)
    large = [x for x in jax.tree.leaves(gen_state(states[-1]).average) if x.shape]
    assert len(large) == kept
    average = gen_optax.averaged_params(states[-1], w)
    assert np.array_equal(average, w) == (not kept)


def test_before_the_first_call_it_is_the_parameters():
    tx = gen_optax.gen(optax.adam(1.0))
    w = jnp.zeros(3)
    assert np.array_equal(gen_optax.averaged_params(tx.init(w), w + 1), w + 1)


def test_inside_of_a_partition_each_part_has_its_own():
    params, data = network(sizes=(5, 8, 3))
    labels = {name: {"w": "a", "b": "b"} if name == "layer0" else "frozen" for name in params}
    groups = {"a": gen_optax.gen_sgd(), "b": gen_optax.gen_adam(), "frozen": optax.set_to_zero()}
    tx = optax.partition(groups, labels)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(network_loss)(params, **data)
        value_fn = gen_optax.unmasked_value_fn(network_loss, params)
        updates, state = tx.update(grads, state, params, value=value, value_fn=value_fn, **data)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(40):
        params, state = step(params, state)
    average = gen_optax.averaged_params(state, params)
    same = jax.tree.map(lambda a, p: bool(jnp.all(a == p)), average, params)
    assert same == {name: dict.fromkeys("wb", labels[name] == "frozen") for name in params}


def test_in_flax_linen_it_is_a_property():
    model, x = nn.Dense(1), jnp.eye(3)
    params = model.init(jax.random.key(0), x)["params"]
    state = gen_optax.linen.TrainState.create(apply_fn=model.apply, params=params, tx=gen_optax.gen_adam())

    @jax.jit
    def step(state):
        def loss_fn(params):
            return jnp.mean((model.apply({"params": params}, x) - 1.0) ** 2)

        value, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads, value=value, value_fn=loss_fn)

    for _ in range(60):
        state = step(state)
    expected = gen_optax.averaged_params(state.opt_state, state.params)
    assert jax.tree.all(jax.tree.map(np.array_equal, state.averaged_params, expected))
    assert not np.array_equal(expected["kernel"], state.params["kernel"])


def test_in_nnx_it_updates_a_model():
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gen_optax.gen_adam(), wrt=nnx.Param)
    x = jnp.eye(3)

    def loss_fn(model):
        return jnp.mean((model(x) - 1.0) ** 2)

    @nnx.jit
    def step(model, optimizer):
        value_fn = gen_optax.nnx.make_value_fn(loss_fn, model)
        value, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads, value=value, value_fn=value_fn)

    for _ in range(60):
        step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    average = gen_optax.averaged_params(optimizer.opt_state, params)
    assert jax.tree.structure(average) == jax.tree.structure(params)
    before = np.asarray(model.kernel[...])
    evaluated = nnx.clone(model)
    nnx.update(evaluated, average)
    assert np.array_equal(model.kernel[...], before)
    assert not np.array_equal(evaluated.kernel[...], before)
    np.testing.assert_allclose(evaluated.kernel[...], before, atol=0.2)


class Normalised(nn.Module):
    """Two layers of batch norm of other momenta."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(4)(x))
        return nn.BatchNorm(use_running_average=not train, momentum=0.99)(nn.Dense(2)(nn.relu(x)))


def test_batch_statistics_are_the_mean_over_batches():
    """With two momenta, against those of batches one by one, which a momentum of 0 leaves behind."""
    model, x = Normalised(), jax.random.normal(jax.random.key(1), (5, 16, 3)) * 2 + 1
    variables = model.init(jax.random.key(0), x[0], train=False)

    def apply_fn(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    found = gen_optax.linen.update_batch_stats(apply_fn, variables, x)["batch_stats"]
    hidden = [batch @ variables["params"]["Dense_0"]["kernel"] for batch in x]
    np.testing.assert_allclose(found["BatchNorm_0"]["mean"], np.mean([h.mean(0) for h in hidden], axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["BatchNorm_0"]["var"], np.mean([h.var(0) for h in hidden], axis=0), rtol=1e-4)
    with pytest.raises(ValueError, match="at least one batch"):
        gen_optax.linen.update_batch_stats(apply_fn, variables, [])

    def evaluating(variables, x):
        return model.apply(variables, x, train=False, mutable=["batch_stats"])

    with pytest.raises(ValueError, match=r"training mode.*use_running_average=False"):
        gen_optax.linen.update_batch_stats(evaluating, variables, x)


class HalfFrozen(nn.Module):
    """A layer of normalisation that keeps its statistics, and one that follows the batches."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.BatchNorm(use_running_average=False, momentum=0.9)(x)


def test_statistics_that_are_held_fixed_stay():
    model, x = HalfFrozen(), jax.random.normal(jax.random.key(1), (5, 16, 3)) * 2 + 1
    variables = model.init(jax.random.key(0), x[0])
    fixed = {"mean": jnp.array([1.0, 0.0, -1.0]), "var": jnp.array([1.0, 4.0, 9.0])}
    variables["batch_stats"]["BatchNorm_0"] = fixed

    def apply_fn(variables, x):
        return model.apply(variables, x, mutable=["batch_stats"])

    found = gen_optax.linen.update_batch_stats(apply_fn, variables, x)["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, found["BatchNorm_0"], fixed)
    normalised = (x - fixed["mean"]) / np.sqrt(fixed["var"] + 1e-5)
    np.testing.assert_allclose(found["BatchNorm_1"]["mean"], normalised.mean((0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["BatchNorm_1"]["var"], normalised.var(1).mean(0), rtol=1e-4)


class Spectral(nn.Module):
    """Normalisation before and behind a layer whose spectral norm is kept among the statistics."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.SpectralNorm(nn.Dense(4))(x, update_stats=train)
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


@pytest.mark.parametrize("jitted", [False, True])
def test_statistics_that_are_no_mean_over_batches_stay(jitted):
    """A mean of the vector of a spectral norm is no such vector; and the layer behind it still follows the batches."""
    model, x = Spectral(), jax.random.normal(jax.random.key(1), (5, 16, 3)) * 2 + 1

    def apply_fn(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    variables = model.init(jax.random.key(0), x[0], train=False)
    for batch in x:
        variables = {**variables, **apply_fn(variables, batch)[1]}

    def retaken(variables):
        return gen_optax.linen.update_batch_stats(apply_fn, variables, x)["batch_stats"]

    found, before = (jax.jit(retaken) if jitted else retaken)(variables), variables["batch_stats"]
    spectral = found["SpectralNorm_0"]
    np.testing.assert_array_equal(spectral["Dense_0/kernel/u"], before["SpectralNorm_0"]["Dense_0/kernel/u"])
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)
    np.testing.assert_allclose(spectral["Dense_0/kernel/sigma"], np.linalg.norm(kernel, 2), rtol=1e-2)
    np.testing.assert_allclose(found["BatchNorm_0"]["mean"], x.mean((0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["BatchNorm_0"]["var"], x.var(1).mean(0), rtol=1e-4)
    normalised = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    hidden = normalised @ (kernel / spectral["Dense_0/kernel/sigma"])
    np.testing.assert_allclose(found["BatchNorm_1"]["mean"], 0, atol=1e-5)
    np.testing.assert_allclose(found["BatchNorm_1"]["var"], hidden.var(1).mean(0), rtol=1e-3)


@pytest.mark.parametrize("count", [jnp.int32(7), jnp.float32(7)])
def test_a_counter_among_the_statistics_stays(count):
    def apply_fn(variables, x):
        mean, count = variables["batch_stats"]["mean"], variables["batch_stats"]["count"]
        return x, {"batch_stats": {"mean": 0.9 * mean + 0.1 * jnp.mean(x), "count": count + 1}}

    variables = {"params": {}, "batch_stats": {"mean": jnp.zeros(()), "count": count}}
    found = gen_optax.linen.update_batch_stats(apply_fn, variables, [jnp.ones(4), 3 * jnp.ones(4)])["batch_stats"]
    assert found["count"] == 7
    assert found["count"].dtype == count.dtype
    np.testing.assert_allclose(found["mean"], 2, rtol=1e-5)


def test_batch_statistics_of_nnx():
    model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(1)))
    x = jax.random.normal(jax.random.key(1), (5, 16, 3)) * 2 + 1
    kernel = np.asarray(model.layers[0].kernel[...])
    gen_optax.nnx.update_batch_stats(lambda model, x: model(x), model, x)
    hidden = [batch @ kernel for batch in x]
    np.testing.assert_allclose(model.layers[1].mean[...], np.mean([h.mean(0) for h in hidden], axis=0), rtol=1e-4)
    np.testing.assert_allclose(model.layers[1].var[...], np.mean([h.var(0) for h in hidden], axis=0), rtol=1e-4)
    assert np.array_equal(model.layers[0].kernel[...], kernel)
    model.eval()
    with pytest.raises(ValueError, match=r"training mode, model\.train\(\)"):
        gen_optax.nnx.update_batch_stats(lambda model, x: model(x), model, x)


class SpectralNnx(nnx.Module):
    """A layer with a spectral norm, and normalisation behind it."""

    def __init__(self, rngs):
        self.spectral = nnx.SpectralNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.spectral(x, update_stats=True))


def test_a_spectral_norm_of_nnx_stays():
    model, x = SpectralNnx(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (5, 16, 3)) * 2 + 1
    model(x[0])
    before = nnx.to_pure_dict(nnx.state(model.spectral, nnx.BatchStat))["batch_stats"]["kernel", "u"]
    gen_optax.nnx.update_batch_stats(lambda model, x: model(x), model, x)
    found = nnx.to_pure_dict(nnx.state(model.spectral, nnx.BatchStat))["batch_stats"]["kernel", "u"]
    np.testing.assert_array_equal(found, before)
    hidden = jnp.stack([nnx.clone(model).spectral(batch, update_stats=True) for batch in x])
    np.testing.assert_allclose(model.norm.mean[...], hidden.mean((0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.norm.var[...], hidden.var(1).mean(0), rtol=1e-4)


@pytest.mark.parametrize("average", [1, "yes", jnp.int32])
def test_what_is_no_dtype_is_an_error(average):
    with pytest.raises(ValueError, match="average must be True, False or a floating-point dtype"):
        gen_optax.gen(optax.sgd(1.0), average=average)


def test_errors_say_what_to_pass():
    params = {"a": jnp.zeros(3)}
    with pytest.raises(ValueError, match="averaged_params found no state of scale_by_gen"):
        gen_optax.averaged_params(optax.adam(1e-3).init(params), params)
    state = gen_optax.gen_adam().init(params)
    with pytest.raises(ValueError, match="averaged_params: params must have the shapes"):
        gen_optax.averaged_params(state, {"a": jnp.zeros(4)})


def test_it_costs_no_forward_pass():
    """A step with it does a few operations more for each parameter, and no product of matrices."""
    params, data = network(sizes=(5, 64, 64, 3))

    def compiled(average):
        tx = gen_optax.gen_adam(average=average)

        def step(params, state):
            value, grads = jax.value_and_grad(network_loss)(params, **data)
            updates, state = tx.update(grads, state, params, value=value, value_fn=network_loss, **data)
            return optax.apply_updates(params, updates), state

        return jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params)).compile()

    without, kept = compiled(False), compiled(True)
    size = sum(x.size for x in jax.tree.leaves(params))
    assert kept.cost_analysis()["flops"] - without.cost_analysis()["flops"] < 10 * size
    grown = kept.memory_analysis().argument_size_in_bytes - without.memory_analysis().argument_size_in_bytes
    assert grown == 4 * size + 4


def test_a_mask_of_infinities_stays_and_stops_nothing():
    """A buffer of an attention's mask among the parameters, which every optimizer of optax leaves alone."""
    mask = jnp.array([0.0, -jnp.inf, 0.0])

    def loss(params):
        logits = params["w"] + jax.lax.stop_gradient(params["mask"])
        return -jax.nn.log_softmax(logits)[0] + 0.1 * jnp.sum(params["w"] ** 2)

    def run(params, loss):
        tx = gen_optax.gen_adam(value_fn=loss)
        state = tx.init(params)
        for _ in range(100):
            updates, state = jax.jit(tx.update)(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return gen_state(state).learning_rate, gen_optax.averaged_params(state, params)

    rate, model = run({"w": jnp.zeros(3), "mask": mask}, loss)
    expected, without = run(jnp.zeros(3), lambda w: loss({"w": w, "mask": mask}))
    np.testing.assert_allclose(rate, expected, rtol=1e-4)
    np.testing.assert_allclose(model["w"], without, rtol=1e-4, atol=1e-6)
    assert np.array_equal(model["mask"], mask)


def test_of_models_side_by_side():
    """Outside of vmap as inside of it, whatever axes the parameters have."""
    tx = gen_optax.gen(optax.sgd(1.0))

    def train(w):
        def step(carry, _):
            w, state = carry
            value = jnp.sum((w - 1) ** 2)
            updates, state = tx.update(2 * (w - 1), state, w, value=value, value_fn=lambda w: jnp.sum((w - 1) ** 2))
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (w, tx.init(w)), length=20)[0]

    for shape in ((3, 2, 5), (3, 2, 3)):
        w, states = jax.vmap(train)(jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape))
        inside = jax.vmap(gen_optax.averaged_params)(states, w)
        np.testing.assert_array_equal(gen_optax.averaged_params(states, w), inside)
