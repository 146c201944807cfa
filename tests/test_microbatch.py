"""mean_value_fn: the mean loss of micro-batches, one at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import flat, gen_state, network, network_loss, numpy_network_loss, settings_of

import gen_optax


def loss_fn(params, batch):
    return network_loss(params, **batch)


def split(batch, k):
    return jax.tree.map(lambda x: x.reshape(k, -1, *x.shape[1:]), batch)


@pytest.mark.parametrize("k", [1, 4])
def test_is_the_loss_of_the_whole_batch(k):
    params, batch = network()
    value_fn = gen_optax.mean_value_fn(loss_fn, split(batch, k))
    expected, gradient = numpy_network_loss(flat(params), *(np.asarray(batch[i], np.float64) for i in "xy"))
    value, grads = jax.jit(jax.value_and_grad(value_fn))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for found, right in zip(flat(grads), gradient, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-6)


def test_losses_of_half_precision_are_averaged_in_float32():
    """The mean of 256 and 257 ones is no bfloat16."""
    values = jnp.array([256.0, 258.0, 258.0, 258.0], jnp.bfloat16)
    mean = gen_optax.mean_value_fn(lambda w, b: b * w, values)(jnp.ones((), jnp.bfloat16))
    assert mean.dtype == jnp.float32
    assert mean == 257.5


def test_aux_is_dropped_and_one_microbatch_is_held_at_a_time():
    shapes = []

    def with_aux(params, batch):
        shapes.append(batch.shape)
        return jnp.mean(batch) * params, batch

    assert gen_optax.mean_value_fn(with_aux, jnp.ones((4, 8)))(2.0) == 2
    assert set(shapes) == {(8,)}


@pytest.mark.parametrize("name", ["three points", "exact", "retrospective"])
def test_as_the_value_fn_of_an_accumulated_gradient(name):
    """The learning rates are those of the whole batch."""
    params, batch = network()
    tx = gen_optax.gen(optax.sgd(1.0), every=1, **settings_of(name, 0.1))
    rates = []
    for value_fn in (functools.partial(network_loss, **batch), gen_optax.mean_value_fn(loss_fn, split(batch, 4))):
        w, state = params, tx.init(params)
        step = jax.jit(functools.partial(tx.update, value_fn=value_fn))
        for _ in range(3):
            updates, state = step(jax.grad(network_loss)(w, **batch), state, w)
            w = optax.apply_updates(w, updates)
        rates.append(gen_state(state).learning_rate)
    assert gen_state(state).info.num_accepted >= 2
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-3)


@pytest.mark.parametrize("microbatches", [{}, 1.0, jnp.zeros((0, 3)), {"x": jnp.zeros((2, 3)), "y": jnp.zeros(3)}])
def test_bad_microbatches(microbatches):
    with pytest.raises(ValueError, match=r"one leading axis in common.*got leading axes"):
        gen_optax.mean_value_fn(loss_fn, microbatches)
