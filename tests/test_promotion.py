"""JAX's strict modes: no array is broadcast to another rank in silence, and none is of another type."""

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import gen_state, network

import gen_optax
from gen_optax import _alignment

STEPS = 100


@pytest.fixture(autouse=True)
def _early_alignment(monkeypatch):
    monkeypatch.setattr(_alignment, "_FIRST", 32)


def loss_fn(params, x, y):
    """Without biases, which are broadcast."""
    for layer in params.values():
        x = jnp.tanh(x @ layer)
    return jnp.mean((x - y) ** 2)


def train(tx):
    """The rates of a run."""
    params, batch = network()
    params = {name: layer["w"] for name, layer in params.items()}

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(params, **batch)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn, **batch)
        return (optax.apply_updates(params, updates), state), gen_state(state).learning_rate

    (params, state), rates = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=STEPS))(params)
    gen_optax.averaged_params(state, params)
    return rates


def test_no_array_is_broadcast_to_another_rank():
    """Search, hold, alignment and average of the default."""
    with jax.numpy_rank_promotion("raise"):
        rates = train(gen_optax.gen(optax.adam(1.0)))
    assert rates[-1] > rates[0] > 0


SETTINGS = {
    "default": {},
    "decay": {"num_steps": STEPS},
    "algorithm_1": {"controller": gen_optax.algorithm_1()},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_float32_needs_no_other_type(name):
    """Whether the base does is its own affair: optax's Adam does."""
    tx = gen_optax.gen(optax.sgd(1.0, momentum=0.9), **SETTINGS[name])
    with jax.numpy_dtype_promotion("strict"):
        rates = train(tx)
    assert rates[-1] > 0
