"""Equinox: the parameters are the arrays of a model, the rest of it is closed over."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax_models import PROBES, assert_same, batch, counting, fixed_rate
from helpers import gen_state

import gen_optax

X, Y = batch()


class Net(eqx.Module):
    """A hidden layer with batch norm and dropout, and leaves that no step may touch: a function, an integer array."""

    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear
    order: jax.Array
    activation: object = jax.nn.relu

    def __init__(self, key):
        keys = jax.random.split(key)
        self.hidden = eqx.nn.Linear(3, 8, key=keys[0])
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.25)
        self.out = eqx.nn.Linear(8, 1, key=keys[1])
        self.order = jnp.array([2, 0, 1])

    def __call__(self, x, state, key):
        x, state = self.norm(self.hidden(x[self.order]), state)
        return self.out(self.dropout(self.activation(x), key=key)), state


def make_step(tx, trainable=eqx.is_inexact_array):
    """The step of docs/guides/equinox.md, for a model with a state."""

    def step(model, model_state, opt_state, x, y, key):
        params, static = eqx.partition(model, trainable)

        def loss_fn(params):
            forward = jax.vmap(eqx.combine(params, static), axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
            predictions, new_state = forward(x, model_state, jax.random.split(key, len(x)))
            return jnp.mean((predictions - y) ** 2), new_state

        (value, model_state_after), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params, value=value, value_fn=loss_fn)
        return eqx.apply_updates(model, updates), model_state_after, opt_state, value

    return step


def arrays(tree):
    return eqx.filter(tree, eqx.is_array)


@functools.cache
def after_eight_steps(scale):
    """The model, its state and that of the optimizer after eight steps of momentum, scaled by a transformation."""
    tx = optax.chain(optax.sgd(1.0, 0.9), scale)
    model, model_state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    step = eqx.filter_jit(make_step(tx))
    for seed in range(8):
        model, model_state, opt_state, _ = step(model, model_state, opt_state, *batch(seed), jax.random.key(seed))
    return model, model_state, opt_state


RATE = optax.scale(0.05)


@pytest.mark.parametrize("probe", ["three points", "retrospective"])
def test_model_and_state_are_the_same_with_and_without_probes(probe):
    *probing, opt_state = after_eight_steps(fixed_rate(0.05, PROBES[probe]))
    *without, _ = after_eight_steps(RATE)
    assert gen_state(opt_state).info.num_probes >= 7
    assert_same(arrays(probing), arrays(without), rtol=1e-4, atol=1e-5)


def test_training_from_a_cold_start():
    tx = gen_optax.gen(optax.adam(1.0), num_steps=60)
    model, model_state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    step, traces = counting(make_step(tx))
    step = eqx.filter_jit(step)
    values = []
    for seed in range(60):
        model, model_state, opt_state, value = step(model, model_state, opt_state, X, Y, jax.random.key(seed))
        values.append(float(value))
    assert np.mean(values[-10:]) < 0.7 * np.mean(values[:3])
    assert gen_state(opt_state).info.num_accepted > 5
    np.testing.assert_array_equal(model.order, [2, 0, 1])
    assert model.activation is jax.nn.relu
    assert len(traces) == 1


def test_frozen_parts_stay_and_take_no_memory():
    tx = gen_optax.gen(optax.adam(1.0), every=2)
    model, model_state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    trainable = jax.tree.map(lambda _: False, model)
    trainable = eqx.tree_at(lambda m: (m.out.weight, m.out.bias), trainable, (True, True))
    opt_state = tx.init(eqx.filter(model, trainable))
    assert sum(leaf.size for leaf in jax.tree.leaves(gen_state(opt_state).probe.anchor)) == 8 + 1
    step = eqx.filter_jit(make_step(tx, trainable))
    trained = model
    for seed in range(20):
        trained, model_state, opt_state, _ = step(trained, model_state, opt_state, X, Y, jax.random.key(seed))
    assert_same(arrays((trained.hidden, trained.norm)), arrays((model.hidden, model.norm)))
    assert np.any(trained.out.weight != model.out.weight)


def test_a_state_used_outside_of_vmap_is_handed_over_anew_to_every_evaluation():
    class Counter(eqx.Module):
        weight: jax.Array
        calls: eqx.nn.StateIndex

        def __init__(self):
            self.weight = jnp.ones(3)
            self.calls = eqx.nn.StateIndex(jnp.array(0))

        def __call__(self, x, state):
            return x @ self.weight, state.set(self.calls, state.get(self.calls) + 1)

    tx = gen_optax.gen_sgd(controller=gen_optax.algorithm_1(), probe=gen_optax.finite_difference(batching="map"))
    model, model_state = eqx.nn.make_with_state(Counter)()
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def step(params, opt_state, model_state, fresh):
        def loss_fn(params):
            # Equinox spends a state with its first use; a tree_map makes another one.
            state = jax.tree.map(lambda s: s, model_state) if fresh else model_state
            predictions, state = eqx.combine(params, static)(X, state)
            return jnp.mean((predictions - Y[:, 0]) ** 2), state

        (value, new_state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params, value=value, value_fn=loss_fn)
        return eqx.apply_updates(params, updates), opt_state, new_state

    carry = params, tx.init(params), model_state
    for _ in range(3):
        carry = eqx.filter_jit(step)(*carry, fresh=True)
    assert carry[2].get(model.calls) == 3
    with pytest.raises(ValueError, match="state"):
        eqx.filter_jit(step)(*carry, fresh=False)
