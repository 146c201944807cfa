"""Parameter-efficient training: only trainable leaves move, the loss sees all of them, frozen ones cost nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KINDS, gen_state, greedy, network, network_loss, settings_of, train

import gen_optax

# Each probe with Algorithm 1 at a known rate, and the default, which has to find one first.
RULES = {
    name: {"probe": probe, "controller": gen_optax.algorithm_1(init_learning_rate=1e-2), "every": 4}
    for name, probe in KINDS.items()
} | {"default": {}}

WIDTH, RANK = 256, 2  # the frozen matrix has 256 KiB, an adapter 4
FROZEN_BYTES = 4 * WIDTH * WIDTH


def lora():
    """`(params, labels, batch)`: a matrix with a low-rank adapter. The batch is small against the matrix."""
    rng = np.random.default_rng(0)
    params = {
        "matrix": rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH),
        "down": rng.normal(size=(WIDTH, RANK)) / np.sqrt(WIDTH),
        "up": np.zeros((RANK, WIDTH)),
    }
    x, target = rng.normal(size=(8, WIDTH)), rng.normal(size=(WIDTH, RANK)) @ rng.normal(size=(RANK, WIDTH)) / WIDTH
    batch = {"x": x, "y": x @ (params["matrix"] + target)}
    labels = {"matrix": "freeze", "down": "train", "up": "train"}
    return (*jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, batch)), labels)


def lora_loss(params, x, y):
    return jnp.mean((x @ params["matrix"] + (x @ params["down"]) @ params["up"] - y) ** 2)


def freezing(inner, labels):
    return optax.partition({"train": inner, "freeze": optax.set_to_zero()}, labels)


def step_of(tx, loss_fn, unmask=True):
    """One training step, as a user of masks writes it."""

    def step(params, state, batch):
        value, grads = jax.value_and_grad(loss_fn)(params, **batch)
        value_fn = gen_optax.unmasked_value_fn(loss_fn, params) if unmask else loss_fn
        updates, state = tx.update(grads, state, params, value=value, value_fn=value_fn, **batch)
        return optax.apply_updates(params, updates), state, value

    return step


@functools.cache
def compiled_lora(name, where):
    """The compiled step with a probe inside or outside of the partition, or of the base alone."""
    params, batch, labels = lora()
    base = optax.adam(1.0)
    tx = {
        "inside": lambda: freezing(gen_optax.gen(base, **RULES[name]), labels),
        "outside": lambda: gen_optax.gen(freezing(base, labels), **RULES[name]),
        "base": lambda: freezing(base, labels),
    }[where]()
    state = tx.init(params)
    step = jax.jit(step_of(tx, lora_loss, unmask=where == "inside"), donate_argnums=1)
    return params, state, batch, step.lower(params, state, batch).compile()


def frozen_copies(name, where):
    """How many copies of the frozen matrix the step holds at its peak, over those of the base alone."""
    memory, base = (compiled_lora(*which)[-1].memory_analysis() for which in ((name, where), ("base", "base")))
    extra = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    extra -= base.temp_size_in_bytes + base.argument_size_in_bytes
    return extra / FROZEN_BYTES


@pytest.mark.parametrize("name", RULES)
def test_lora_trains_the_adapter_alone_without_a_copy_of_the_matrix(name):
    params, state, batch, step = compiled_lora(name, "inside")
    start, matrix = lora_loss(params, **batch), np.asarray(params["matrix"])
    for _ in range(100):
        params, state, value = step(params, jax.tree.map(jnp.copy, state), batch)
    assert value < 0.1 * start
    np.testing.assert_array_equal(params["matrix"], matrix)
    assert gen_state(state).info.num_accepted > 0
    assert frozen_copies(name, "inside") < 0.5
    assert sum(x.nbytes for x in jax.tree.leaves(state)) < FROZEN_BYTES / 2


@pytest.mark.parametrize(("name", "copies"), [("three points", 2), ("retrospective", 1), ("default", 1)])
def test_outside_of_the_partition_frozen_leaves_are_copied(name, copies):
    """What the guide says, and the measure by which the test above can fail."""
    assert frozen_copies(name, "outside") >= 0.9 * copies


def test_inside_and_outside_find_the_same_rate():
    """Zeros at the frozen leaves, or no frozen leaves: one and the same step."""
    rates = []
    for where in ("inside", "outside"):
        params, state, batch, step = compiled_lora("exact", where)
        state = jax.tree.map(jnp.copy, state)
        for _ in range(20):
            params, state, _ = step(params, state, batch)
        rates.append(gen_state(state).learning_rate)
    np.testing.assert_allclose(*rates, rtol=1e-4)


def test_bitfit():
    params, batch = network()
    labels = jax.tree_util.tree_map_with_path(lambda path, _: "train" if path[-1].key == "b" else "freeze", params)
    tx = freezing(gen_optax.gen_adamw(), labels)
    state, step, start = tx.init(params), jax.jit(step_of(tx, network_loss)), params
    for _ in range(100):
        params, state, value = step(params, state, batch)
    assert value < 0.9 * network_loss(start, **batch)
    for layer in params:
        np.testing.assert_array_equal(params[layer]["w"], start[layer]["w"])
        assert np.all(np.asarray(params[layer]["b"] != start[layer]["b"]))


def test_one_learning_rate_per_group():
    """Two transformations, each of which probes its own part; the masks are prefixes of the tree."""
    params, batch = network()
    options = {"controller": gen_optax.algorithm_1(), "probe": gen_optax.exact(), "every": 2}
    tx = optax.partition(
        {"first": gen_optax.gen_sgd(**options), "second": gen_optax.gen_adam(**options)},
        {"layer0": "first", "layer1": "second"},
    )
    state, step = tx.init(params), jax.jit(step_of(tx, network_loss))
    start = network_loss(params, **batch)
    for _ in range(100):
        params, state, value = step(params, state, batch)
    assert value < 0.2 * start
    metrics = gen_optax.metrics(state)
    assert metrics["0/num_accepted"] > 10
    assert metrics["1/num_accepted"] > 10
    assert not np.isclose(metrics["0/learning_rate"], metrics["1/learning_rate"], rtol=0.1)


def test_frozen_parameters_as_an_extra_argument():
    """Without masks: the optimizer never hears of what is frozen."""
    params, batch, _ = lora()
    frozen = {"matrix": params.pop("matrix")}

    def loss_fn(trainable, frozen, x, y):
        return lora_loss(trainable | frozen, x, y)

    start = loss_fn(params, frozen, **batch)
    params, _state, losses, _ = train(gen_optax.gen_adam(), params, loss_fn, 150, frozen=frozen, **batch)
    assert losses[-1] < 0.1 * start
    assert set(params) == {"down", "up"}


@pytest.mark.parametrize("name", KINDS)
def test_a_masked_loss_says_how_to_unmask_it(name):
    """The note reaches whoever reads the traceback, whatever went wrong first."""
    params, batch, labels = lora()
    tx = freezing(gen_optax.gen(optax.sgd(1.0), **settings_of(name)), labels)
    with pytest.raises(TypeError) as caught:
        jax.jit(step_of(tx, lora_loss, unmask=False))(params, tx.init(params), batch)
    notes = "\n".join(caught.value.__notes__)
    assert "value_fn=gen_optax.unmasked_value_fn(loss_fn, params)" in notes


def test_unmasked_value_fn_keeps_the_names_of_its_arguments():
    """By which update hands them on; and works where nothing is masked, on partials and on callable objects."""
    params, batch = network()

    class Loss:
        def __call__(self, params, x, y):
            return network_loss(params, x, y)

    masked = {"layer0": optax.MaskedNode(), "layer1": params["layer1"]}
    expected = network_loss(params, **batch)
    tx = gen_optax.scale_by_gen(probe=gen_optax.exact(), **greedy(0.1))

    @functools.partial(jax.jit, static_argnums=0)
    def probe(value_fn):
        whole = gen_optax.unmasked_value_fn(value_fn, params)
        arguments = {"y": batch["y"]} if isinstance(value_fn, functools.partial) else batch
        _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params, value_fn=whole, **batch)
        return whole(masked, **arguments), whole(params, **arguments), state.info.value

    for value_fn in (network_loss, Loss(), functools.partial(network_loss, x=batch["x"])):
        np.testing.assert_allclose(probe(value_fn), expected, rtol=1e-6)
