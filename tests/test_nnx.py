"""gen_optax.nnx: a loss over a model as a function of its parameters, that leaves the model alone."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax_models import PROBES, NnxNet, assert_same, batch, counting, fixed_rate, host, nnx_loss, nnx_model, nnx_step
from helpers import gen_state

import gen_optax
import gen_optax.nnx

X, Y = batch()

# One optimizer and one jitted step for several tests: the same program, compiled once.
DEFAULT = gen_optax.gen(optax.adam(1.0), num_steps=60)
counted_step, TRACES = counting(nnx_step)
STEP = nnx.jit(counted_step)


def everything(model):
    return host(nnx.state(model))


def info_of(optimizer):
    return gen_state(nnx.as_pure(optimizer.opt_state)).info


def test_value_fn_is_the_loss_with_the_masks_to_come_and_leaves_the_model_alone():
    model = NnxNet(nnx.Rngs(0))
    before = everything(model)

    @nnx.jit
    def losses(model):
        params = nnx.state(model, nnx.Param)
        early = gen_optax.nnx.make_value_fn(nnx_loss, model)
        twice = early(params, X, Y), early(nnx.as_pure(params), x=X, y=Y)
        value, _ = nnx.value_and_grad(nnx_loss)(model, X, Y)
        late = gen_optax.nnx.make_value_fn(nnx_loss, model)
        return value, *twice, early(params, X, Y), late(params, X, Y)

    value, *same, late = losses(model)
    np.testing.assert_allclose(same, [value] * 3, rtol=1e-6)
    assert abs(late - value) > 1e-3  # the masks of the next pass
    after = everything(model)
    assert after["dropout"]["rngs"]["count"] == before["dropout"]["rngs"]["count"] + 1  # value_and_grad's, once
    np.testing.assert_allclose(  # likewise
        after["norm"]["mean"], 0.1 * np.mean(X @ before["hidden"]["kernel"], 0), rtol=1e-4, atol=1e-6
    )


@functools.cache
def after_ten_steps(scale):
    """The model and its optimizer after ten steps of momentum, scaled by a transformation."""
    model, optimizer = nnx_model(optax.chain(optax.sgd(1.0, 0.9), scale))
    step = nnx.jit(nnx_step)
    for seed in range(10):
        step(model, optimizer, *batch(seed))
    return model, optimizer


RATE = optax.scale(0.05)


@pytest.mark.parametrize("probe", ["three points", "exact", "retrospective"])
def test_the_model_is_the_same_with_and_without_probes(probe):
    model, optimizer = after_ten_steps(fixed_rate(0.05, PROBES[probe]))
    without, _ = after_ten_steps(RATE)
    assert info_of(optimizer).num_probes >= 9
    assert everything(model)["dropout"]["rngs"]["count"] == 10
    assert_same(everything(model), everything(without), rtol=1e-4, atol=1e-5)


def test_training_from_a_cold_start_compiles_once():
    model, optimizer = nnx_model(DEFAULT)
    TRACES.clear()
    values = [float(STEP(model, optimizer, X, Y)) for _ in range(60)]
    assert np.mean(values[-10:]) < 0.7 * np.mean(values[:3])
    assert info_of(optimizer).num_accepted > 5
    assert optimizer.step[...] == 60
    assert len(TRACES) <= 1  # or none: another test has compiled it
    model, optimizer = nnx_model(DEFAULT, seed=1)
    STEP(model, optimizer, X, Y)
    assert len(TRACES) <= 1


def test_every_candidate_has_the_dropout_mask_of_the_gradient():
    model, optimizer = nnx_model(optax.chain(optax.sgd(1.0), fixed_rate(1e-3, gen_optax.finite_difference())))

    @nnx.jit
    def step(model, optimizer):
        value_fn = gen_optax.nnx.make_value_fn(nnx_loss, model)
        value, grads = nnx.value_and_grad(nnx_loss)(model, X, Y)
        optimizer.update(model, grads, value_fn=value_fn, x=X, y=Y)  # no value: the centre is a candidate, too
        return value, optax.tree.norm(nnx.as_pure(grads), squared=True)

    value, squared_norm = step(model, optimizer)
    info = info_of(optimizer)
    np.testing.assert_allclose(info.value, value, rtol=1e-6)
    np.testing.assert_allclose(info.slope, squared_norm, rtol=0.02)


def test_aux_is_dropped():
    tx = gen_optax.gen_adam(controller=gen_optax.algorithm_1(), probe=gen_optax.exact(), every=1)
    model, optimizer = nnx_model(tx)

    def loss_fn(model, batch):
        predictions = model(batch["x"])
        return jnp.mean((predictions - batch["y"]) ** 2), {"predictions": predictions, "name": "aux"}

    @nnx.jit
    def step(model, optimizer, batch):
        value_fn = gen_optax.nnx.make_value_fn(loss_fn, model)
        (value, _), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, batch)
        optimizer.update(model, grads, value=value, value_fn=value_fn, batch=batch)

    for _ in range(3):
        step(model, optimizer, {"x": X, "y": Y})
    assert info_of(optimizer).num_probes == 3


class Shared(nnx.Module):
    """Draws its masks from a stream that it is called with."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, rngs):
        return self.linear(self.dropout(x, rngs=rngs))


def test_bound_arguments_and_random_streams_among_them():
    def loss_fn(model, x, y, rngs, scale, reduce):
        return reduce(scale * (model(x, rngs) - y) ** 2)

    model, rngs = Shared(nnx.Rngs(0)), nnx.Rngs(1)
    optimizer = nnx.Optimizer(model, gen_optax.gen_sgd(controller=gen_optax.algorithm_1()), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, rngs, x, y):
        value_fn = gen_optax.nnx.make_value_fn(loss_fn, model, rngs=rngs, y=y, reduce=jnp.mean)
        params = nnx.state(model, nnx.Param)
        probed = value_fn(params, x=x, scale=2.0)
        value, grads = nnx.value_and_grad(loss_fn)(model, x, y, rngs, 2.0, jnp.mean)
        optimizer.update(model, grads, value=value, value_fn=value_fn, x=x, scale=2.0)
        return value, probed

    value_fn = gen_optax.nnx.make_value_fn(loss_fn, model, rngs=rngs, y=Y, reduce=jnp.mean)
    assert list(inspect.signature(value_fn).parameters) == ["params", "x", "scale"]
    for count in (1, 2):
        value, probed = step(model, optimizer, rngs, X, Y)
        np.testing.assert_allclose(probed, value, rtol=1e-6)
        assert rngs.default.count[...] == count


def test_what_model_and_arguments_share_stays_shared():
    model = NnxNet(nnx.Rngs(0))

    def loss_fn(model, penalized):
        return nnx_loss(model, X, Y) + jnp.sum(penalized.kernel**2)

    value_fn = gen_optax.nnx.make_value_fn(loss_fn, model, penalized=model.out)
    params = nnx.state(model, nnx.Param)
    grads = jax.grad(value_fn)(nnx.as_pure(params))
    own = gen_optax.nnx.make_value_fn(nnx_loss, model, x=X, y=Y)
    np.testing.assert_allclose(
        grads["out"]["kernel"] - jax.grad(own)(nnx.as_pure(params))["out"]["kernel"],
        2 * model.out.kernel[...],
        rtol=1e-4,
        atol=1e-6,
    )


def test_only_the_selected_variables_are_parameters():
    class Adapted(nnx.Module):
        def __init__(self, rngs):
            self.base = nnx.Linear(3, 1, rngs=rngs)
            self.lora = nnx.LoRA(3, 2, 1, rngs=rngs)

        def __call__(self, x):
            return self.base(x) + self.lora(x)

    model = Adapted(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gen_optax.gen(optax.adam(1.0), every=2), wrt=nnx.LoRAParam)
    kernel = np.asarray(model.base.kernel[...])

    @nnx.jit
    def step(model, optimizer):
        value_fn = gen_optax.nnx.make_value_fn(nnx_loss, model, wrt=nnx.LoRAParam)
        value, grads = nnx.value_and_grad(nnx_loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model, X, Y)
        optimizer.update(model, grads, value=value, value_fn=value_fn, x=X, y=Y)
        return value

    values = [float(step(model, optimizer)) for _ in range(100)]
    assert values[-1] < 0.8 * values[0]
    np.testing.assert_array_equal(model.base.kernel[...], kernel)
    assert set(nnx.as_pure(optimizer.opt_state)[1].probe.anchor) == {"lora"}  # no copy of what is frozen


def test_another_wrt_than_the_optimizers_is_an_error():
    model = NnxNet(nnx.Rngs(0))
    value_fn = gen_optax.nnx.make_value_fn(nnx_loss, model, nnx.BatchStat)
    with pytest.raises(ValueError, match=r"(?s)wrt=.*BatchStat.*selected: .*mean.*given: .*kernel"):
        value_fn(nnx.state(model, nnx.Param), X, Y)


def test_a_missing_argument_is_named():
    model, optimizer = nnx_model(gen_optax.gen_sgd())
    value_fn = gen_optax.nnx.make_value_fn(nnx_loss, model)
    grads = nnx.grad(nnx_loss)(model, X, Y)
    with pytest.raises(ValueError, match="value_fn needs the argument y"):
        optimizer.update(model, grads, value_fn=value_fn, x=X)


def test_it_keeps_what_the_model_was():
    model = NnxNet(nnx.Rngs(0))
    model.eval()
    value_fn = gen_optax.nnx.make_value_fn(nnx_loss, model)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    value = value_fn(params, X, Y)
    model.train()
    model.norm.mean[...] += 1.0
    model.hidden.kernel[...] += 1.0
    assert value_fn(params, X, Y) == value
    assert nnx_loss(model, X, Y) != value


@pytest.mark.parametrize("transform", ["vmap", "map", "cond", "jvp of jvp", "checkpoint", "while"])
def test_no_trace_level_errors(transform):
    model = NnxNet(nnx.Rngs(0))

    @nnx.jit
    def losses(model):
        value_fn = gen_optax.nnx.make_value_fn(nnx_loss, model, x=X, y=Y)
        params = nnx.as_pure(nnx.state(model, nnx.Param))

        def along(t):
            return value_fn(jax.tree.map(lambda p: (1 + t) * p, params))

        if transform == "vmap":
            return along(0.0), jax.vmap(along)(jnp.zeros(2))[1]
        if transform == "map":
            return along(0.0), jax.lax.map(along, jnp.zeros(2))[1]
        if transform == "cond":
            return along(0.0), jax.lax.cond(jnp.sum(X) < 1e9, along, lambda t: t, 0.0)
        if transform == "jvp of jvp":
            first = lambda t: jax.jvp(along, (t,), (1.0,))[1]  # noqa: E731
            return along(0.0), jax.jvp(first, (0.0,), (1.0,))[1] * 0 + along(0.0)
        if transform == "checkpoint":
            return along(0.0), jax.value_and_grad(jax.checkpoint(along))(0.0)[0]
        return along(0.0), jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, along(0.0)), (0, 0.0))[1]

    expected, found = losses(model)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert model.dropout.rngs.count[...] == 0


def test_a_whole_run_in_nnx_scan():
    model, optimizer = nnx_model(DEFAULT)

    @nnx.jit
    def run(model, optimizer, xs, ys):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        def steps(carry, batch):
            return carry, nnx_step(*carry, *batch)

        return steps((model, optimizer), (xs, ys))[1]

    xs, ys = (jnp.stack(arrays) for arrays in zip(*map(batch, range(10)), strict=True))
    values = run(model, optimizer, xs, ys)
    assert values.shape == (10,)
    assert optimizer.step[...] == 10
    assert model.dropout.rngs.count[...] == 10

    again = nnx_model(DEFAULT)
    for seed in range(10):
        STEP(*again, *batch(seed))
    assert_same(everything(model), everything(again[0]), rtol=1e-4, atol=1e-5)
