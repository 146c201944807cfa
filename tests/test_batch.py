"""The number by which a batch is known: the same for the same data, another one for others."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from gen_optax import _batch

PARAMS = jnp.ones((8, 3))
KEYS = jax.random.split(jax.random.key(0), 5)
DATA = {"x": jax.random.normal(KEYS[0], (32, 8)), "y": jax.random.normal(KEYS[1], (32, 3))}
OTHER = {"x": jax.random.normal(KEYS[2], (32, 8)), "y": jax.random.normal(KEYS[3], (32, 3))}


def fingerprint(loss_fn):
    return int(_batch.fingerprint(jax.make_jaxpr(loss_fn)(PARAMS), jnp.float32(1)))


def regression(batch, layers):
    def loss_fn(params):
        h = batch["x"]
        for weights, bias in layers:
            h = jnp.tanh(h @ weights + bias)
        return jnp.mean((h @ params - batch["y"]) ** 2)

    return loss_fn


def layers(*widths, scale=1.0):
    shapes = itertools.pairwise(widths)
    return [(scale * jax.random.normal(KEYS[4], shape), jnp.full(shape[1], scale)) for shape in shapes]


@pytest.mark.parametrize("widths", [(), (8, 8), (8, 64, 8), (8, 16, 16, 8), (8, 64, 64, 8)], ids=str)
def test_frozen_layers_are_no_batch(widths):
    """Narrower than the batch, or wider; and a target network that changes from call to call."""
    before, after = layers(*widths), layers(*widths, scale=0.5)
    seen = [fingerprint(regression(*case)) for case in ((DATA, before), (DATA, after), (OTHER, before))]
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize("width", [2, 4])
def test_pairs_of_unsigned_tokens_are_no_keys(width):
    tokens = [jax.random.randint(key, (64, width), 0, 50).astype(jnp.uint32) for key in KEYS[:2]]
    table = jax.random.normal(KEYS[2], (50, 8))

    def loss_of(tokens):
        return lambda params: jnp.mean((table[tokens] @ params) ** 2)

    assert len({fingerprint(loss_of(x)) for x in (*tokens, tokens[0])}) == 2


@pytest.mark.parametrize("new_style", [False, True])
def test_a_random_key_is_no_batch(new_style):
    keys = [(jax.random.key if new_style else jax.random.PRNGKey)(seed) for seed in (0, 1)]

    def loss_of(key):
        return lambda params: regression(DATA, [])(params) + jax.random.uniform(key)

    assert len({fingerprint(loss_of(key)) for key in keys}) == 1
