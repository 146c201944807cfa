"""Which batches are told apart, and for how long they are remembered."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gen_optax
from gen_optax import _batch


def fingerprint(*batch):
    """The number of a loss of these arrays."""
    trace = jax.make_jaxpr(lambda w: sum(jnp.sum(w * x) for x in batch))(jnp.ones(()))
    return int(_batch.fingerprint(trace, jnp.float32(1)))


def one_hot(rng, dtype=np.float32, number=16, classes=8):
    return jnp.asarray(np.eye(classes)[rng.integers(0, classes, number)], dtype)


def batch_of(kind, rng):
    return {
        "one-hot": lambda: [one_hot(rng)],
        "one-hot integers": lambda: [one_hot(rng, np.int32)],
        "one-hot, and labels that are": lambda: [one_hot(rng), one_hot(rng, classes=4)],
        "positions of a board": lambda: [one_hot(rng, classes=27).reshape(16, 3, 3, 3)],
        "features": lambda: [jnp.asarray(rng.normal(size=(16, 5)), jnp.float32)],
        "labels": lambda: [jnp.asarray(rng.integers(0, 10, 16))],
    }[kind]()


KINDS = ["one-hot", "one-hot integers", "one-hot, and labels that are", "positions of a board", "features", "labels"]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_told_apart(kind):
    """Entries that are the same in all of them differ in their places."""
    rng = np.random.default_rng(0)
    assert len({fingerprint(*batch_of(kind, rng)) for _ in range(30)}) == 30


@pytest.mark.parametrize("kind", KINDS)
def test_neither_the_order_of_the_examples_nor_their_devices_matter(kind):
    """The numbers of parts, as devices hold them, add up to that of the whole."""
    batch, order = batch_of(kind, np.random.default_rng(0)), np.random.default_rng(1).permutation(16)
    whole = fingerprint(*batch)
    assert fingerprint(*(x[order] for x in batch)) == whole
    parts = [fingerprint(*(x[part] for x in batch)) for part in (slice(0, 8), slice(8, 16))]
    assert sum(parts) % 2**32 == whole


def test_one_hot_batches_that_come_back_are_recognised():
    """As dense ones are: four batches flatter the steps, and the run says so."""
    rng = np.random.default_rng(0)
    x = jnp.stack([one_hot(rng) for _ in range(4)])
    assert trained(gen_optax.gen(optax.adam(1.0)), x, calls=120) & gen_optax.Notice.BATCH_SEEN


def trained(tx, batches, calls):
    """The notices of a run through these batches, again and again."""

    def step(carry, x):
        w, state = carry
        loss_fn = lambda w: jnp.mean((x @ w - 1) ** 2)  # noqa: E731
        value, grads = jax.value_and_grad(loss_fn)(w)
        updates, state = tx.update(grads, state, w, value=value, value_fn=loss_fn)
        return (optax.apply_updates(w, updates), state), None

    w = jnp.zeros(batches.shape[-1])
    (_, state), _ = jax.lax.scan(step, (w, tx.init(w)), batches[jnp.arange(calls) % len(batches)])
    return int(optax.tree.get(state, "notices"))


@pytest.mark.parametrize(
    ("every", "remembered"), [(16, 16), (8, 16), (np.int64(3), 18), (15, 30), (64, 64), (jnp.int32(64), 16)]
)
def test_as_many_batches_are_remembered_as_a_path_has_steps(every, remembered):
    """Where `every` is an array its number may be traced, and is not known."""
    state = gen_optax.scale_by_gen(every=every).init(jnp.zeros(2))
    assert state.probe.batches.last.shape == (remembered,)


@pytest.mark.parametrize(("every", "number"), [(64, 20), (15, 17)])
def test_a_long_path_is_not_judged_on_its_own_batches_unseen(every, number):
    """They come back within a path, though not within 16 calls."""
    batches = jax.random.normal(jax.random.key(0), (number, 16, 8))
    assert trained(gen_optax.gen(optax.adam(1.0), every=every), batches, calls=400) & gen_optax.Notice.BATCH_SEEN


PARAMS = jnp.ones((8, 3))
KEYS = jax.random.split(jax.random.key(0), 5)
DATA = {"x": jax.random.normal(KEYS[0], (32, 8)), "y": jax.random.normal(KEYS[1], (32, 3))}
OTHER = {"x": jax.random.normal(KEYS[2], (32, 8)), "y": jax.random.normal(KEYS[3], (32, 3))}


def fingerprint_of(loss_fn):
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
    seen = [fingerprint_of(regression(*case)) for case in ((DATA, before), (DATA, after), (OTHER, before))]
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize("width", [2, 4])
def test_pairs_of_unsigned_tokens_are_no_keys(width):
    tokens = [jax.random.randint(key, (64, width), 0, 50).astype(jnp.uint32) for key in KEYS[:2]]
    table = jax.random.normal(KEYS[2], (50, 8))

    def loss_of(tokens):
        return lambda params: jnp.mean((table[tokens] @ params) ** 2)

    assert len({fingerprint_of(loss_of(x)) for x in (*tokens, tokens[0])}) == 2


@pytest.mark.parametrize("new_style", [False, True])
def test_a_random_key_is_no_batch(new_style):
    keys = [(jax.random.key if new_style else jax.random.PRNGKey)(seed) for seed in (0, 1)]

    def loss_of(key):
        return lambda params: regression(DATA, [])(params) + jax.random.uniform(key)

    assert len({fingerprint_of(loss_of(key)) for key in keys}) == 1
