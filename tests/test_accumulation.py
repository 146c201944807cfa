"""Accumulation: one probe per step on the loss of all micro-batches, and the trap of optax.MultiSteps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import PROBES, flat, gen_state, network, network_loss, numpy_network_loss

import gen_optax

K = 4
PAPER = gen_optax.algorithm_1(init_learning_rate=0.1)  # without a look for a first rate


def loss_fn(params, batch):
    return network_loss(params, **batch)


def split(batch):
    return jax.tree.map(lambda x: x.reshape(K, -1, *x.shape[1:]), batch)


class Counter:
    """A loss that counts, at run time, on how many samples it is evaluated."""

    def __init__(self):
        self.samples = 0

    def _add(self, samples):
        self.samples += int(samples)

    def __call__(self, params, batch):
        # A debug callback, batched by vmap, runs once per batch element.
        jax.debug.callback(self._add, batch["x"].shape[0] + 0 * params["layer1"]["b"][0])
        return loss_fn(params, batch)

    def read(self):
        jax.effects_barrier()
        samples, self.samples = self.samples, 0
        return samples


def test_mean_value_and_grad():
    """Of the whole batch, against float64 NumPy, with the auxiliary output of each micro-batch."""
    params, batch = network()
    microbatches = split(batch)
    expected, gradient = numpy_network_loss(flat(params), *(np.asarray(batch[i], np.float64) for i in "xy"))
    value, grads = jax.jit(gen_optax.mean_value_and_grad(loss_fn, microbatches))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for found, right in zip(flat(grads), gradient, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-6)

    def with_aux(params, batch):
        return loss_fn(params, batch), {"largest": jnp.max(batch["x"])}

    (value, aux), same = jax.jit(gen_optax.mean_value_and_grad(with_aux, microbatches, has_aux=True))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_array_equal(aux["largest"], jnp.max(microbatches["x"], (1, 2)))
    jax.tree.map(np.testing.assert_array_equal, same, grads)


def test_half_precision_is_added_up_in_float32():
    """In bfloat16 the sum would stop growing at 256."""
    ones = jnp.ones(1000, jnp.bfloat16)
    value, grad = gen_optax.mean_value_and_grad(lambda w, b: b * w, ones)(jnp.ones((), jnp.bfloat16))
    assert (value.dtype, grad.dtype) == (jnp.float32, jnp.bfloat16)
    assert value == grad == 1


def test_memory_of_one_microbatch():
    """Many micro-batches need no more temporary memory than few; differentiating their mean does."""
    params, _ = network(sizes=(5, 256, 3))

    def temporaries(transform, k):
        microbatches = {"x": jnp.ones((k, 64, 5)), "y": jnp.ones((k, 64, 3))}
        compiled = jax.jit(lambda p, m: transform(p, m)).lower(params, microbatches).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def ours(p, m):
        return gen_optax.mean_value_and_grad(loss_fn, m)(p)

    def naive(p, m):
        return jax.value_and_grad(gen_optax.mean_value_fn(loss_fn, m))(p)

    activations = 4 * 64 * 256
    assert temporaries(ours, 16) < temporaries(ours, 2) + activations
    assert temporaries(naive, 16) > temporaries(naive, 2) + 10 * activations


def test_scalar_loss_is_asked_for():
    with pytest.raises(ValueError, match="loss_fn must return a real scalar"):
        gen_optax.mean_value_and_grad(lambda w, b: w * b, jnp.ones((2, 3)))(1.0)
    with pytest.raises(ValueError, match="one leading axis in common"):
        gen_optax.mean_value_and_grad(loss_fn, {"x": jnp.ones((2, 3)), "y": jnp.ones(3)})


@pytest.mark.parametrize(
    ("name", "passes"), [("three points", 2), ("map", 2), ("free slope", 1), ("retrospective", 2), ("exact", 1)]
)
def test_one_probe_per_step_on_all_microbatches(name, passes):
    """Run-time counts: k micro-batches for the gradient, and `passes` times k more where a probe is due."""
    params, batch = network()
    microbatches, counter = split(batch), Counter()
    tx = gen_optax.gen(optax.sgd(1.0), controller=PAPER, probe=PROBES[name], every=4)

    @jax.jit
    def step(params, state):
        value, grads = gen_optax.mean_value_and_grad(counter, microbatches)(params)
        value_fn = gen_optax.mean_value_fn(counter, microbatches)
        updates, state = tx.update(grads, state, params, value=value, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    state, counts = tx.init(params), []
    for _ in range(8):
        params, state = step(params, state)
        counts.append(counter.read() / len(batch["x"]))
    assert counts == [1, 1, 1, 1 + passes] * 2
    assert gen_state(state).info.num_probes == 2
    assert gen_state(state).info.accepted


def in_multi_steps(tx, **options):
    tx = optax.MultiSteps(tx, K, **options)
    params, batch = network()
    one, counter = jax.tree.map(lambda x: x[0], split(batch)), Counter()

    @jax.jit
    def mini_step(params, state, one):
        value, grads = jax.value_and_grad(loss_fn)(params, one)
        return tx.update(grads, state, params, value=value, value_fn=counter, batch=one)

    return params, tx.init(params), one, counter, mini_step


def test_multi_steps_around_gen_warns_and_why():
    """The probe costs k passes over one mini-batch each, not one over all: run-time counts."""
    tx = gen_optax.gen(optax.sgd(1.0), controller=PAPER, every=1)
    params, state, one, counter, mini_step = in_multi_steps(tx)
    with pytest.warns(UserWarning, match=r"MultiSteps.*k times.*mean_value_and_grad"):
        mini_step = mini_step.lower(params, state, one).compile()
    counts = []
    for _ in range(2 * K):
        _, state = mini_step(params, state, one)
        counts.append(counter.read() / len(one["x"]))
    assert counts == [2] * (2 * K)
    assert gen_state(state).info.num_probes == 2


def test_no_warning_elsewhere():
    """MultiSteps around something else, beside gen, and other wrappers (warnings are errors here)."""
    params, state, one, _, mini_step = in_multi_steps(optax.sgd(1.0))
    mini_step(params, state, one)
    tx = optax.apply_if_finite(gen_optax.gen_sgd(controller=PAPER), 3)
    tx.update(params, tx.init(params), params, value_fn=functools.partial(loss_fn, batch=one))


@pytest.mark.parametrize(
    "base",
    [
        optax.MultiSteps(optax.sgd(1.0), K),
        optax.MultiSteps(optax.sgd(1.0), K).gradient_transformation(),
        optax.chain(optax.clip(1.0), optax.MultiSteps(optax.sgd(1.0), K).gradient_transformation()),
    ],
)
def test_gen_around_multi_steps_is_refused(base):
    with pytest.raises(ValueError, match=r"optax.MultiSteps is zero at all calls but.*mean_value_and_grad"):
        gen_optax.gen(base).init(network()[0])


def test_multi_steps_in_a_chain_drops_value_fn():
    """`gradient_transformation()` takes no extra arguments; the message says so and shows the call."""
    multi = optax.MultiSteps(gen_optax.gen_sgd(), K).gradient_transformation()
    tx = optax.chain(optax.clip(1.0), multi)
    params, batch = network()
    with pytest.raises(ValueError, match=r"(?s)value_fn=loss_fn.*drops the extra arguments.*gradient_transformation"):
        tx.update(params, tx.init(params), params, value_fn=loss_fn, batch=batch)
