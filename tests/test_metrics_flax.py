"""metrics: out of a TrainState, an nnx.Optimizer, and what optax wraps around a GenState inside of them."""

import json

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from flax_models import batch, linen_state, linen_step, nnx_model, nnx_step

import gen_optax

# What is counted here is the price that gen_optax warns of.
pytestmark = pytest.mark.filterwarnings("ignore:scale_by_gen runs inside optax.MultiSteps:UserWarning")

X, Y = batch()
GEN = dict(controller=gen_optax.algorithm_1(), every=1)

# The number of probes after four steps tells whose state it is.
TRANSFORMS = {
    "gen": (lambda: gen_optax.gen_adam(b1=0.9, **GEN), 4),
    "chain": (lambda: optax.chain(optax.clip(1.0), optax.chain(optax.adam(1.0), gen_optax.scale_by_gen(**GEN))), 4),
    "MultiSteps": (lambda: optax.MultiSteps(gen_optax.gen(optax.adam(1.0), **GEN), 2), 2),
    "inject_hyperparams": (
        lambda: optax.chain(
            optax.adam(1.0),
            optax.inject_hyperparams(gen_optax.scale_by_gen, static_args=("every",))(max_learning_rate=1.0, **GEN),
        ),
        4,
    ),
}
NAMES = {"learning_rate", "applied_learning_rate", *gen_optax.GenInfo._fields}


def check(found, num_probes):
    assert set(found) == NAMES
    assert found["num_probes"] == num_probes
    assert found["value"] > 0
    assert type(found["accepted"]) is bool
    assert {type(value) for value in found.values()} == {float, int, bool}
    json.dumps(found)


@pytest.mark.parametrize("name", ["gen", "MultiSteps", "inject_hyperparams"])
def test_in_a_train_state(name):
    make, num_probes = TRANSFORMS[name]
    state = linen_state(make())
    step = jax.jit(lambda state: (state := linen_step(state, X, Y)[0], gen_optax.metrics(state)))
    for _ in range(4):
        state, traced = step(state)
    found = gen_optax.metrics(state)
    check(found, num_probes)
    assert gen_optax.metrics(state.opt_state) == found
    assert {key: value.item() for key, value in traced.items()} == found


@pytest.mark.parametrize("name", ["gen", "chain", "MultiSteps"])
def test_in_an_nnx_optimizer(name):
    make, num_probes = TRANSFORMS[name]
    model, optimizer = nnx_model(make())

    @nnx.jit
    def step(model, optimizer):
        nnx_step(model, optimizer, X, Y)
        return gen_optax.metrics(optimizer)

    for _ in range(4):
        traced = step(model, optimizer)
    found = gen_optax.metrics(optimizer)
    check(found, num_probes)
    assert gen_optax.metrics(optimizer.opt_state) == found
    assert {key: np.asarray(value).item() for key, value in traced.items()} == found


def test_no_gen_state_is_an_error():
    with pytest.raises(ValueError, match="LinenState"):
        gen_optax.metrics(linen_state(optax.adam(1e-3)))
    with pytest.raises(ValueError, match="Optimizer"):
        gen_optax.metrics(nnx_model(optax.adam(1e-3))[1])
