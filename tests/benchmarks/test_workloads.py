"""Every workload in its tiny form: no data needed, a few seconds each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import workloads
from benchmarks.models.flow import RealNVP
from benchmarks.workloads import _common, diffusion, physics

LEARNING_RATES = {"sgd": 0.05, "adamw": 3e-3}
SPECIAL_LEARNING_RATES = {"beale": 1e-3, "rosenbrock": 1e-4, "minilm_lora": 3e-2, "minilm_bitfit": 3e-2}


@functools.cache
def tiny(name):
    workload = workloads.get(name, tiny=True)
    return workload, *workload.init(jax.random.key(0))


def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    # Nearly all the time goes into compiling networks that then run for 20 steps.
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("GEN_OPTAX_DATA", str(tmp_path))


@functools.cache
def training(name):
    """The optimizer and a step with it, compiled once."""
    workload, params, _ = tiny(name)
    rate = SPECIAL_LEARNING_RATES.get(name, LEARNING_RATES[workload.base])
    base = optax.sgd(rate, momentum=0.9) if workload.base == "sgd" else optax.adamw(rate)
    if workload.trainable is not None:
        labels = jax.tree.map(lambda t: "train" if t else "freeze", workload.trainable(params))
        base = optax.multi_transform({"train": base, "freeze": optax.set_to_zero()}, labels)
    value_and_grad = jax.value_and_grad(workload.loss_fn, has_aux=True)

    @jax.jit
    def step(params, model_state, optimizer, batch, key):
        (loss, model_state), grads = value_and_grad(params, model_state, batch, key)
        updates, optimizer = base.update(grads, optimizer, params)
        return optax.apply_updates(params, updates), model_state, optimizer, loss, optax.tree.norm(grads)

    return base, step


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_workload_trains(name):
    workload, params, model_state = tiny(name)
    assert workload.name == name
    base, step = training(name)
    batches = workload.batches(0, workload.batch_size)
    first, key = next(batches), jax.random.key(1)
    optimizer, state = base.init(params), (params, model_state)
    losses, norms = [], []
    for i in range(20):
        batch = first if i == 0 else next(batches)
        *state, optimizer, loss, norm = step(*state, optimizer, batch, jax.random.fold_in(key, i))
        losses.append(float(loss))
        norms.append(float(norm))
    assert np.all(np.isfinite(losses)), losses
    assert min(norms[0], norms[-1]) > 0
    # Same batch, same key: only the parameters differ.
    after = step(*state, optimizer, first, jax.random.fold_in(key, 0))[3]
    assert after < losses[0], (losses, after)
    assert jax.tree.structure(state[1]) == jax.tree.structure(model_state)


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_a_step_depends_on_nothing_but_its_arguments(name):
    workload, params, model_state = tiny(name)
    base, step = training(name)
    batch = next(workload.batches(0, workload.batch_size))
    assert equal(*(step(params, model_state, base.init(params), batch, jax.random.key(3)) for _ in range(2)))


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_batches_are_those_of_the_seed(name):
    workload, _, _ = tiny(name)
    streams = [workload.batches(seed, workload.batch_size) for seed in (5, 5, 6)]
    a, b, c = ([next(stream) for _ in range(3)] for stream in streams)
    assert equal(a, b)
    if name not in ("logreg_fullbatch", "beale", "rosenbrock"):
        assert not equal(a, c)
    other = next(workload.batches(5, 3))
    for name, array in a[0].items():
        assert np.shape(other[name])[1:] == np.shape(array)[1:]
        assert len(array) == workload.batch_size


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_evaluation(name):
    workload, params, model_state = tiny(name)
    first, second = (workload.evaluate(params, model_state, "validation") for _ in range(2))
    assert first == second
    for results in (first, workload.evaluate(params, model_state, "test")):
        assert {"loss", workload.metric} <= set(results)
        assert all(isinstance(value, float) and np.isfinite(value) for value in results.values())


def test_unknown_workload():
    with pytest.raises(ValueError, match=r"Unknown workload 'nothing'\. Known: digits_mlp"):
        workloads.get("nothing")


def test_missing_data_names_the_command():
    with pytest.raises(FileNotFoundError, match="python -m benchmarks fetch letter"):
        workloads.get("logreg_minibatch")


def test_a_pass_shows_every_example_once():
    batches = _common.batches_of({"x": np.arange(10)})(0, 4)
    seen = np.concatenate([next(batches)["x"] for _ in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    large = next(_common.batches_of({"x": np.arange(10)})(0, 25))["x"]
    assert set(np.bincount(large)) == {2, 3}


def test_splits_do_not_overlap():
    rest, part = _common.split_off({"x": np.arange(10)}, 3)
    assert sorted([*rest["x"], *part["x"]]) == list(range(10))
    assert equal(_common.split_off({"x": np.arange(10)}, 3)[1], part)


def test_chunks_do_not_change_a_mean():
    splits = {"test": {"x": np.arange(10.0)}}
    for chunk in (3, 5, 16):
        evaluate = _common.mean_over(lambda params, state, batch: {"loss": params * batch["x"]}, splits, chunk)
        assert evaluate(jnp.float32(2), {}, "test") == {"loss": 9.0}


def test_a_flow_is_a_density():
    flow = RealNVP(num_couplings=3, width=8)
    params = flow.init(jax.random.key(0), jnp.zeros((1, 2)), train=False)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    axis = np.linspace(-20, 20, 1001)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)
    for params in (structure.unflatten(leaves), structure.unflatten(moved)):
        densities = np.exp(flow.apply(params, grid, train=False))
        assert densities.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-3)
    assert densities.max() != pytest.approx(1 / (2 * np.pi), rel=0.01)


def test_burgers_reference_solves_the_equation():
    x, t = np.random.default_rng(0).uniform((-0.99, 0.01), (0.99, 0.99), (100, 2)).T
    h, u = 1e-3, physics.burgers
    u_t = (u(x, t + h) - u(x, t - h)) / (2 * h)
    u_x = (u(x + h, t) - u(x - h, t)) / (2 * h)
    u_xx = (u(x + h, t) - 2 * u(x, t) + u(x - h, t)) / h**2
    np.testing.assert_allclose(u_t + u(x, t) * u_x, 0.05 * u_xx, atol=1e-4)
    np.testing.assert_allclose(u(x, 0 * t), -np.sin(np.pi * x), atol=1e-12)
    np.testing.assert_allclose(u(np.sign(x), t), 0, atol=1e-12)


def test_evaluation_times_are_a_grid():
    time = diffusion._with_noise({"x": np.zeros((7, 3), np.float32)})["time"]
    np.testing.assert_allclose(np.sort(time), (np.arange(70) + 0.5) / 70, rtol=1e-6)
    assert (np.floor(10 * time) == np.tile(np.arange(10), 7)).all()
