"""metrics: a flat dict out of whatever holds a GenState."""

import json

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import greedy, train

import gen_optax

NAMES = {"learning_rate", "applied_learning_rate", *gen_optax.GenInfo._fields}


def loss_fn(w):
    return jnp.sum((w - 3.0) ** 2)


def at_rate(rate):
    return gen_optax.scale_by_gen(controller=gen_optax.algorithm_1(init_learning_rate=rate))


def test_python_numbers_of_a_trained_state():
    tx = gen_optax.gen_sgd(probe=gen_optax.exact(), num_steps=4, **greedy(0.25))
    _, state, _, _ = train(tx, jnp.zeros(2), loss_fn, 1)
    found = gen_optax.metrics(state)
    assert set(found) == NAMES
    # w = 0: L = 18, G = -6 per entry, u = 6, b = 72, A = 144, eta* = 1/2, not yet decayed.
    assert found["value"] == 18
    assert found["slope"] == 72
    assert found["curvature"] == 144
    assert found["optimal_learning_rate"] == found["learning_rate"] == found["applied_learning_rate"] == 0.5
    assert found["accepted"] is True
    assert found["status"] == gen_optax.ProbeStatus.ACCEPTED
    assert found["num_probes"] == found["num_accepted"] == 1
    json.dumps(found)  # plain numbers: any logger takes them


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.clip(1.0), optax.chain(optax.adam(1.0), tx)),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.named_chain(("gen", tx)),
        lambda tx: optax.inject_hyperparams(lambda factor: optax.chain(optax.scale(factor), tx))(1.0),
    ],
)
def test_any_nesting(wrap):
    state = wrap(at_rate(0.5)).init(jnp.zeros(3))
    assert gen_optax.metrics({"epoch": 3, "optimizer": [state]})["learning_rate"] == 0.5


def test_several_states_are_numbered():
    states = [at_rate(rate).init(jnp.zeros(3)) for rate in (0.5, 0.25)]
    found = gen_optax.metrics(states)
    assert set(found) == {f"{i}/{name}" for i in (0, 1) for name in NAMES}
    assert (found["0/learning_rate"], found["1/learning_rate"]) == (0.5, 0.25)


def test_inside_jit_and_scan():
    state = at_rate(0.5).init(jnp.zeros(3))
    found = jax.jit(gen_optax.metrics)(state)
    assert found["learning_rate"] == 0.5
    _, found = jax.lax.scan(lambda s, _: (s, gen_optax.metrics(s)), state, length=3)
    assert found["learning_rate"].shape == (3,)


def test_of_models_trained_side_by_side():
    """A state under vmap holds vectors; metrics hands them on."""
    state = jax.vmap(at_rate(0.5).init)(jnp.zeros((4, 3)))
    assert gen_optax.metrics(state)["learning_rate"].shape == (4,)


def test_no_state():
    with pytest.raises(ValueError, match=r"no state of scale_by_gen.*got tuple"):
        gen_optax.metrics(optax.adam(1.0).init(jnp.zeros(3)))
