"""gen_optax.linen: a TrainState that hands on to the optimizer what is not its own."""

import functools
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import fp8_ops
from flax.training import train_state
from flax_models import NET, PROBES, LinenState, assert_same, batch, counting, fixed_rate, linen_state, linen_step
from helpers import gen_state

import gen_optax
import gen_optax.linen

X, Y = batch()
DENSE = nn.Dense(1)
DENSE_PARAMS = DENSE.init(jax.random.key(0), X)["params"]


def dense_loss(params, x, y):
    return jnp.mean((DENSE.apply({"params": params}, x) - y) ** 2)


def create(cls, tx, params=DENSE_PARAMS, **fields):
    return cls.create(apply_fn=DENSE.apply, params=params, tx=tx, **fields)


@pytest.mark.parametrize("tx", [optax.adamw(0.1), optax.chain(optax.clip(0.1), optax.sgd(0.1, 0.9))])
def test_plain_optimizers_step_as_in_flax(tx):
    class Flax(train_state.TrainState):
        average: jax.Array

    class Ours(gen_optax.linen.TrainState):
        average: jax.Array

    @jax.jit
    def step(state):
        value, grads = jax.value_and_grad(dense_loss)(state.params, X, Y)
        return state.apply_gradients(grads=grads, average=0.9 * state.average + 0.1 * value)

    theirs, ours = (create(cls, tx, average=jnp.zeros(())) for cls in (Flax, Ours))
    for _ in range(5):
        theirs, ours = step(theirs), step(ours)
    assert isinstance(ours, train_state.TrainState)
    assert_same(vars(ours) | {"tx": 0, "apply_fn": 0}, vars(theirs) | {"tx": 0, "apply_fn": 0})
    assert ours.step == 5
    assert ours.average > 0


def test_a_plain_optimizer_ignores_what_gen_needs():
    grads = jax.grad(dense_loss)(DENSE_PARAMS, X, Y)
    state = create(gen_optax.linen.TrainState, optax.sgd(0.1))
    with_loss = state.apply_gradients(grads=grads, value=1.0, value_fn=dense_loss, x=X, y=Y)
    assert_same(with_loss.params, state.apply_gradients(grads=grads).params)


def test_optax_line_search_gets_its_arguments():
    tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10))
    state = create(gen_optax.linen.TrainState, tx)

    @jax.jit
    def step(state):
        value, grads = jax.value_and_grad(dense_loss)(state.params, X, Y)
        return state.apply_gradients(grads=grads, value=value, grad=grads, value_fn=dense_loss, x=X, y=Y), value

    values = []
    for _ in range(5):
        state, value = step(state)
        values.append(float(value))
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_gen_steps_as_without_flax_and_compiles_once():
    tx = gen_optax.gen(optax.adam(1.0), every=2)
    state = create(gen_optax.linen.TrainState, tx)

    def arguments(params):
        value, grads = jax.value_and_grad(dense_loss)(params, X, Y)
        return grads, dict(value=value, value_fn=dense_loss, x=X, y=Y)

    def step(state):
        grads, extra = arguments(state.params)
        return state.apply_gradients(grads=grads, **extra)

    @jax.jit
    def bare_step(params, opt_state):
        grads, extra = arguments(params)
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    step, traces = counting(step)
    jitted = jax.jit(step)
    bare = DENSE_PARAMS, tx.init(DENSE_PARAMS)
    for _ in range(20):
        state, bare = jitted(state), bare_step(*bare)
    assert_same((state.params, state.opt_state), bare)
    assert gen_state(state.opt_state).info.num_accepted > 0
    assert len(traces) == 1


def test_fields_are_replaced_and_the_rest_goes_to_value_fn():
    class State(gen_optax.linen.TrainState):
        shift: jax.Array

    def value_fn(params, x, y, shift=0.0):  # names a field: that one is the state's, not the optimizer's
        return dense_loss(params, x, y) + shift

    tx = gen_optax.scale_by_gen(controller=gen_optax.algorithm_1(), every=1)
    state = create(State, tx, shift=jnp.zeros(()))

    @jax.jit
    def step(state):
        grads = jax.grad(dense_loss)(state.params, X, Y)
        return state.apply_gradients(grads=grads, value_fn=value_fn, x=X, y=Y, shift=jnp.ones(()))

    state = step(state)
    assert state.shift == 1
    np.testing.assert_allclose(state.opt_state.info.value, dense_loss(DENSE_PARAMS, X, Y), rtol=1e-6)


@functools.cache
def after_ten_steps(scale):
    """The state after ten steps of momentum, scaled by a transformation."""
    state, step = linen_state(optax.chain(optax.sgd(1.0, 0.9), scale)), jax.jit(linen_step)
    for seed in range(10):
        state, _ = step(state, *batch(seed))
    return state


RATE = optax.scale(0.05)


@pytest.mark.parametrize("probe", ["three points", "retrospective"])
def test_batch_statistics_are_the_same_with_and_without_probes(probe):
    probing, without = after_ten_steps(fixed_rate(0.05, PROBES[probe])), after_ten_steps(RATE)
    assert gen_state(probing.opt_state).info.num_probes >= 9
    assert_same(probing.batch_stats, without.batch_stats, rtol=1e-5, atol=1e-6)
    assert_same(probing.params, without.params, rtol=1e-4, atol=1e-6)


def test_every_candidate_has_the_dropout_mask_of_the_gradient():
    state = linen_state(gen_optax.scale_by_gen(controller=gen_optax.algorithm_1(), every=1))

    def loss_fn(params, seed=7):
        variables = {"params": params, "batch_stats": state.batch_stats}
        predictions, _ = NET.apply(variables, X, mutable=["batch_stats"], rngs={"dropout": jax.random.key(seed)})
        return jnp.mean((predictions - Y) ** 2)

    @jax.jit
    def probed(state):
        value, grads = jax.value_and_grad(loss_fn)(state.params)
        step = jax.tree.map(lambda g: -g, grads)
        info = state.apply_gradients(grads=step, value_fn=loss_fn).opt_state.info
        return info, value, grads, loss_fn(state.params, seed=8)

    info, value, grads, other = probed(state)
    np.testing.assert_allclose(info.value, value, rtol=1e-6)
    # A mask of its own for each candidate would move the loss by far more than the step does.
    squared_norm = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads))
    np.testing.assert_allclose(info.slope, squared_norm, rtol=0.02)
    assert abs(float(value) - float(other)) > 1e-3  # another key, another loss


def test_cold_start_with_batch_norm_and_dropout():
    state = linen_state(gen_optax.gen(optax.adam(1.0), num_steps=60))
    step = jax.jit(linen_step)
    values = []
    for _ in range(60):
        state, value = step(state, X, Y)
        values.append(float(value))
    assert np.mean(values[-10:]) < 0.7 * np.mean(values[:3])


class Float8(nn.Module):
    """Its forward pass keeps scales in a collection that flax calls OVERWRITE_WITH_GRADIENT."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16, dot_general_cls=fp8_ops.Fp8DirectDotGeneralOp)(x)
        return nn.Dense(1)(nn.relu(x))


X16 = jax.random.normal(jax.random.key(0), (16, 16))
OWG = fp8_ops.OVERWRITE_WITH_GRADIENT


def float8_loss(variables, x, y):
    return jnp.mean((Float8().apply(variables, x) - y) ** 2)


def test_float8_scales_are_overwritten_as_in_flax():
    variables = Float8().init(jax.random.key(0), X16)
    tx = optax.adam(0.01)

    @jax.jit
    def step(state):
        return state.apply_gradients(grads=jax.grad(float8_loss)(state.params, X16, Y))

    theirs, ours = (
        cls.create(apply_fn=Float8().apply, params=variables, tx=tx)
        for cls in (train_state.TrainState, gen_optax.linen.TrainState)
    )
    for _ in range(3):
        theirs, ours = step(theirs), step(ours)
    assert_same((ours.params, ours.opt_state), (theirs.params, theirs.opt_state))
    assert any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (ours.params[OWG], variables[OWG])), strict=True))


@pytest.mark.parametrize("name", ["value_fn", "obj_fn"])
def test_float8_losses_and_gradients_are_of_all_variables(name):
    variables = Float8().init(jax.random.key(0), X16)
    # The probe is there to be looked at: in float8 it has nothing to say that is worth following.
    scale = gen_optax.scale_by_gen(
        controller=gen_optax.algorithm_1(), probe=gen_optax.finite_difference(free_slope=True), every=1
    )
    tx = optax.chain(optax.sgd(1.0), scale)
    state = gen_optax.linen.TrainState.create(apply_fn=Float8().apply, params=variables, tx=tx)

    @jax.jit
    def step(state):
        value, grads = jax.value_and_grad(float8_loss)(state.params, X16, Y)
        return state.apply_gradients(grads=grads, grad=grads, x=X16, y=Y, **{name: float8_loss}), value, grads

    state, value, grads = step(state)
    info = gen_state(state.opt_state).info
    np.testing.assert_allclose(info.value, value, rtol=1e-6)
    np.testing.assert_allclose(info.slope, optax.tree.norm(grads["params"], squared=True), rtol=1e-5)


def test_parameters_need_not_be_a_dict():
    state = gen_optax.linen.TrainState.create(apply_fn=lambda w: w, params=jnp.ones(3), tx=gen_optax.gen_sgd())
    state = state.apply_gradients(grads=2 * jnp.ones(3), value=3.0, value_fn=lambda w: jnp.sum(w**2))
    assert np.all(state.params < 1)


def test_errors_say_what_to_pass():
    state = create(gen_optax.linen.TrainState, gen_optax.gen_sgd())
    with pytest.raises(ValueError, match="pass value_fn"):
        state.apply_gradients(grads=DENSE_PARAMS)
    with pytest.raises(ValueError, match="value_fn needs the arguments x, y"):
        state.apply_gradients(grads=DENSE_PARAMS, value_fn=dense_loss)
    with pytest.raises(TypeError, match="opt_state"):
        create(gen_optax.linen.TrainState, optax.sgd(0.1)).apply_gradients(grads=DENSE_PARAMS, opt_state=())


def test_subclasses_keep_their_type_under_jit_and_scan():
    state = linen_state(gen_optax.gen_adam(controller=gen_optax.algorithm_1(), every=2))
    final, values = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: linen_step(s, X, Y), state.replace(step=jnp.int32(0)), length=10)
    )(state)
    assert type(final) is LinenState
    assert final.step == 10
    assert np.all(np.isfinite(values))


def test_gen_optax_alone_imports_no_flax():
    code = (
        "import sys, gen_optax\n"
        "loaded = sorted({m.split('.')[0] for m in sys.modules} & {'flax', 'equinox', 'orbax', 'matplotlib'})\n"
        "assert not loaded, loaded\n"
        "import gen_optax.linen, gen_optax.nnx\n"
        "assert 'flax' in sys.modules"
    )
    root = pathlib.Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_the_average_of_float8_parameters_keeps_their_scales():
    variables = Float8().init(jax.random.key(0), X16)
    state = gen_optax.linen.TrainState.create(apply_fn=Float8().apply, params=variables, tx=gen_optax.gen_adam())
    for _ in range(3):
        value, grads = jax.value_and_grad(float8_loss)(state.params, X16, Y)
        state = state.apply_gradients(grads=grads, value=value, value_fn=float8_loss, x=X16, y=Y)
    average = state.averaged_params
    assert_same(average[OWG], state.params[OWG])
    assert_same(average["params"], gen_optax.averaged_params(state.opt_state, state.params["params"]))


def test_what_no_one_asked_for_is_not_dropped_in_silence():
    state = gen_optax.linen.TrainState.create(apply_fn=DENSE.apply, params=DENSE_PARAMS, tx=gen_optax.gen_sgd())
    value, grads = jax.value_and_grad(dense_loss)(state.params, X, Y)
    given = {"grads": grads, "value": value, "value_fn": dense_loss, "x": X, "y": Y}
    with pytest.warns(UserWarning, match=r"given batch_stats, which TrainState has no field for"):
        state.apply_gradients(**given, batch_stats={})
    state.apply_gradients(**given)  # a warning would be an error
