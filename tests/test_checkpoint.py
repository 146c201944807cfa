"""Checkpoints with orbax: 20 steps, save, restore, 50 more steps are to the bit the run that went on."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax_models import assert_same, batch, counting, linen_state, linen_step, nnx_model, nnx_step
from helpers import gen_state, network, network_loss

import gen_optax

BEFORE, AFTER = 20, 50
BATCHES = [batch(seed) for seed in range(5)]

PAPER = gen_optax.algorithm_1(init_learning_rate=1e-2)
# Between them: what a path and what a controller remember, neither, both, a decay, a horizon, a state inside of others.
TRANSFORMS = {
    "default": gen_optax.gen(optax.adam(1.0), every=3, num_steps=100),
    "controller": gen_optax.gen(optax.adam(1.0), probe=gen_optax.exact(independent=True), every=3),
    "path": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.sgd(1.0, 0.9),
        gen_optax.scale_by_gen(
            controller=PAPER, probe=gen_optax.retrospective(), every=3, decay=optax.cosine_decay_schedule(1.0, 100)
        ),
    ),
    "neither": optax.chain(
        optax.sgd(1.0, 0.9),
        optax.inject_hyperparams(gen_optax.scale_by_gen)(controller=PAPER, every=3, max_learning_rate=10.0),
    ),
}
# The flax wrappers know no other difference than whether there are parameters in the state.
KINDS = "default", "controller"


def save_and_restore(path, state: Any, abstract_state: Any) -> Any:
    with ocp.CheckpointManager(path) as manager:
        manager.save(BEFORE, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
    with ocp.CheckpointManager(path) as manager:
        return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(abstract_state))


def assert_interchangeable(restored: Any, live: Any) -> None:
    """One tree type, one dtype and shape per leaf: what `lax.cond` asks of its branches."""
    assert jax.tree.structure(restored) == jax.tree.structure(live)
    assert_same(restored, live)
    chosen = jax.jit(lambda first, a, b: jax.lax.cond(first, lambda: a, lambda: b))(True, restored, live)
    assert jax.tree.structure(chosen) == jax.tree.structure(live)


@pytest.mark.parametrize("name", KINDS)
def test_linen_train_state(name, tmp_path):
    tx = TRANSFORMS[name]
    step = jax.jit(linen_step)

    def run(state, first, steps):
        for i in range(first, first + steps):
            state, _ = step(state, *BATCHES[i % 5])
        return state

    state = run(linen_state(tx), 0, BEFORE)
    abstract = jax.eval_shape(lambda: linen_state(tx, seed=9))
    restored = save_and_restore(tmp_path / "run", state, abstract)
    assert isinstance(gen_state(restored.opt_state), gen_optax.GenState)
    assert restored.key.dtype == state.key.dtype  # a typed key
    assert_interchangeable(restored.opt_state, state.opt_state)
    assert_same(run(restored, BEFORE, AFTER), (final := run(state, BEFORE, AFTER)))
    assert gen_state(final.opt_state).count == BEFORE + AFTER
    assert gen_state(final.opt_state).info.num_accepted > gen_state(state.opt_state).info.num_accepted


@pytest.mark.parametrize("name", KINDS)
def test_nnx_optimizer(name, tmp_path):
    tx = TRANSFORMS[name]
    step, traces = counting(nnx_step)
    step = nnx.jit(step)

    def run(training, first, steps):
        for i in range(first, first + steps):
            step(*training, *BATCHES[i % 5])

    training = nnx_model(tx)
    run(training, 0, BEFORE)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: nnx_model(tx, seed=9)))
    restored = nnx.merge(graphdef, save_and_restore(tmp_path / "run", nnx.state(training), abstract))
    live, back = (nnx.as_pure(optimizer.opt_state) for _, optimizer in (training, restored))
    assert isinstance(gen_state(back), gen_optax.GenState)
    assert_interchangeable(back, live)
    accepted = gen_state(live).info.num_accepted
    run(restored, BEFORE, AFTER)
    run(training, BEFORE, AFTER)
    assert_same(nnx.state(restored), nnx.state(training))
    assert restored[0].dropout.rngs.count[...] == BEFORE + AFTER
    final = gen_state(nnx.as_pure(restored[1].opt_state))
    assert final.count == BEFORE + AFTER
    assert final.info.num_accepted > accepted
    assert len(traces) == 1


@pytest.mark.parametrize("name", [*TRANSFORMS, "float64"])
def test_plain_optax_state(name, tmp_path):
    x64 = name == "float64"
    with jax.enable_x64(x64):
        tx = TRANSFORMS["default" if x64 else name]
        params, data = network(sizes=(5, 8, 3))

        @jax.jit
        def step(params, state):
            value, grads = jax.value_and_grad(network_loss)(params, **data)
            updates, state = tx.update(grads, state, params, value=value, value_fn=network_loss, **data)
            return optax.apply_updates(params, updates), state

        def run(training, steps):
            for _ in range(steps):
                training = step(*training)
            return training

        # Bound to a device, as a restored state is: one compilation serves both.
        training = run(jax.device_put((params, tx.init(params)), jax.devices()[0]), BEFORE)
        abstract = jax.eval_shape(lambda p: (p, tx.init(p)), params)
        restored = save_and_restore(tmp_path / "run", training, abstract)
        assert gen_state(restored[1]).learning_rate.dtype == (jnp.float64 if x64 else jnp.float32)
        assert_interchangeable(restored, training)
        final = run(training, AFTER)
        assert_same(run(restored, AFTER), final)
        assert gen_state(final[1]).count == BEFORE + AFTER


@pytest.mark.parametrize("part", ["probe", "controller", "alignment"])
def test_what_is_remembered_matters(part):
    """A run that lost a part of it goes on differently: the comparisons above can tell."""
    tx = gen_optax.gen(optax.adam(1.0), num_steps=1000)
    params, data = network(sizes=(5, 8, 3))

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(network_loss)(params, **data)
        updates, state = tx.update(grads, state, params, value=value, value_fn=network_loss, **data)
        return optax.apply_updates(params, updates), state

    steps, more = (200, 73) if part == "alignment" else (3, 1)  # a stretch ends at call 256, a probe is at 272
    run = jax.jit(lambda params, state, n: jax.lax.fori_loop(0, n, lambda _, x: step(*x), (params, state)))
    params, (base, gen) = run(params, tx.init(params), steps)
    lost = gen._replace(**{part: getattr(tx.init(params)[1], part)})
    rates = [gen_state(run(params, (base, one), more)[1]).learning_rate for one in (gen, lost)]
    assert rates[0] != rates[1]
