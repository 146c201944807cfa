"""Every optimizer that optax and optax.contrib export, as the base, with no learning rate given.

The list is read off the packages, so that an optimizer of a later optax is tested as soon as it is installed; each is
either trained here or named below with the reason why it cannot be.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from helpers import gen_state, network, network_loss, train

import gen_optax

# What an optimizer needs besides a learning rate, or wants to show its own work on matrices as small as these.
ARGUMENTS = {
    "optax.noisy_sgd": {"key": 0},
    "optax.adafactor": {"min_dim_size_to_factor": 4},
}

# Why an optimizer cannot be the base of GeN on this network.
EXCEPTIONS = {
    "optax.contrib.dpsgd": "takes one gradient per example, not their mean",
    "optax.contrib.sophia": "takes obj_fn and a key in update, for its own estimate of the Hessian",
    "optax.contrib.schedule_free": "averages unscaled steps of its own; gen refuses it and says what to write",
    "optax.contrib.schedule_free_adamw": "as schedule_free",
    "optax.contrib.schedule_free_sgd": "as schedule_free",
    "optax.contrib.cocob": "finds a learning rate itself; gen refuses it and says what to write",
    "optax.contrib.dadapt_adamw": "as cocob",
    "optax.contrib.dog": "as cocob",
    "optax.contrib.dowg": "as cocob",
    "optax.contrib.momo": "as cocob",
    "optax.contrib.momo_adam": "as cocob",
    "optax.contrib.prodigy": "as cocob",
    "optax.lbfgs": "as cocob, by its line search",
    "optax.scale_by_rprop": "no optimizer: the sign of the descent is left to the caller",
}


def is_optimizer(f):
    """A function of a learning rate; optax.nadam is a functools.partial of one."""
    is_function = inspect.isfunction(f) or isinstance(f, functools.partial)
    return is_function and "learning_rate" in inspect.signature(f).parameters


BASES = {
    f"{module.__name__}.{name}": f
    for module in (optax, optax.contrib)
    for name, f in sorted(vars(module).items())
    if not name.startswith("_") and is_optimizer(f)
}


def test_the_list_is_complete():
    """The optimizers that the project promises are among those that introspection finds."""
    promised = "sgd adam adamw nadam nadamw lion lamb lars rmsprop adafactor adan yogi novograd adamax adagrad"
    assert {f"optax.{name}" for name in promised.split()} <= set(BASES)
    assert {"optax.contrib.muon", "optax.contrib.prodigy"} <= set(BASES)
    assert set(EXCEPTIONS) <= set(BASES), "an exception for what no longer exists"


TRAINED = sorted(set(BASES) - set(EXCEPTIONS))


def with_key(name):
    if "key" in ARGUMENTS.get(name, {}) and "key" not in inspect.signature(BASES[name]).parameters:
        return {"seed": 0}  # optax before 0.2.6
    return ARGUMENTS.get(name, {})


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_lowers_the_loss_with_no_learning_rate(name):
    """Full batch, where nothing averages a mistake away, for longer than it takes to climb to the edge and beyond."""
    params, batch = network(sizes=(5, 8, 3))
    tx = gen_optax.gen(BASES[name](1.0, **with_key(name)))
    found, state, losses, _ = train(tx, params, network_loss, 200, **batch)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(found))
    assert np.median(losses[-20:]) < 0.8 * losses[0]
    assert gen_state(state).info.num_accepted > 10
    assert np.max(losses) < 100 * losses[0]


def test_plain_sgd_on_a_full_batch_is_caught_at_the_edge():
    """It climbs to the edge of stability, and chaos decides how far beyond: hence many starts, close together."""
    params, batch = network(sizes=(5, 8, 3))
    tx = gen_optax.gen(optax.sgd(1.0))

    def losses(factor):
        return train(tx, jax.tree.map(lambda p: factor * p, params), network_loss, 200, **batch)[2]

    factors = np.concatenate([1 + 1e-4 * np.arange(-8, 8), 1 + 1e-2 * np.arange(-8, 8)])
    seen = jax.vmap(losses)(jnp.asarray(factors, jnp.float32))
    assert np.max(seen.max(axis=1) / seen[:, 0]) < 30
    assert np.max(np.median(seen[:, -20:], axis=1) / seen[:, 0]) < 0.5


@pytest.mark.parametrize(
    "base",
    [
        optax.sgd(1.0, momentum=0.9),
        optax.sgd(1.0, momentum=0.9, nesterov=True),
        optax.polyak_sgd(1.0),
        optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1.0, weight_decay=0.1)),
        optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1), optax.scale(-1.0)),
        optax.chain(optax.scale_by_rprop(1.0), optax.scale(-1.0)),
    ],
    ids=["momentum", "nesterov", "polyak", "clipped", "by hand", "rprop by hand"],
)
def test_variants_and_chains(base):
    params, batch = network(sizes=(5, 8, 3))
    _, _, losses, _ = train(gen_optax.gen(base), params, network_loss, 100, **batch)
    assert np.median(losses[-10:]) < 0.8 * losses[0]


REFUSED = sorted(name for name, why in EXCEPTIONS.items() if why.startswith(("as ", "finds ")))


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_the_remedy(name):
    with pytest.raises(ValueError, match=r"Turn it inside out|Choose one"):
        gen_optax.gen(BASES[name](1.0)).init({"w": jnp.zeros(3)})


def test_a_base_gets_value_grad_and_value_fn():
    """As those of its parts that ask for them do, in the chain that it is."""
    params, batch = network(sizes=(5, 8, 3))
    seen = {}

    def update_fn(updates, state, params=None, *, value, grad, value_fn, **extra_args):
        seen.update(value=value, grad=grad, value_fn=value_fn)
        return updates, state

    asks = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)
    tx = gen_optax.gen(optax.chain(asks, optax.sgd(1.0)))
    value, grads = jax.value_and_grad(network_loss)(params, **batch)
    tx.update(grads, tx.init(params), params, value=value, value_fn=network_loss, **batch)
    assert seen["value"] is value
    assert seen["value_fn"] is network_loss
    jax.tree.map(np.testing.assert_array_equal, seen["grad"], grads)
