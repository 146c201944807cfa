"""The loss along a step: what value_fn is given, where the candidates lie, derivatives."""

import functools
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import flat, gen_state, network, network_loss, numpy_network_loss, random_quadratic

import gen_optax
from gen_optax import _loss, _tree


@pytest.mark.parametrize("batching", ["vmap", "map"])
def test_probe_losses_on_a_network(batching):
    """At candidates on both sides, against float64 NumPy."""
    params, batch = network()
    rng = np.random.default_rng(1)
    updates = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    step_sizes = np.array([-0.3, 0.0, 0.01, 2.0])
    losses = jax.jit(
        lambda w, u, t: gen_optax.probe_losses(functools.partial(network_loss, **batch), w, u, t, batching)
    )(params, updates, step_sizes)
    x, y = (np.asarray(batch[k], np.float64) for k in "xy")
    expected = [
        numpy_network_loss([w + t * u for w, u in zip(flat(params), flat(updates), strict=True)], x, y)[0]
        for t in step_sizes
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses.shape == (4,)
    assert losses.dtype == jnp.float32


def test_probe_losses_says_what_is_wrong():
    w = jnp.ones(2)
    with pytest.raises(ValueError, match=r"one dimension, got shape \(\)"):
        gen_optax.probe_losses(jnp.sum, w, w, 0.1)
    with pytest.raises(ValueError, match=r'"vmap" or "map", got \'scan\''):
        gen_optax.probe_losses(jnp.sum, w, w, jnp.ones(1), "scan")
    with pytest.raises(ValueError, match=r"real scalar.*shape \(2,\)"):
        gen_optax.probe_losses(lambda w: w, w, w, jnp.ones(1))


@hypothesis.given(seed=st.integers(0, 1000), size=st.sampled_from([2, 7]))
def test_directional_derivatives_of_quadratics(seed, size):
    problem = random_quadratic(seed, size)
    rng = np.random.default_rng(seed)
    w, u = rng.normal(size=size), rng.normal(size=size)
    slope, curvature = problem.slope_and_curvature(w, u)
    result = gen_optax.directional_derivatives(
        problem.value_fn, jnp.asarray(w, jnp.float32), jnp.asarray(u, jnp.float32)
    )
    scale = np.linalg.norm(u) * np.linalg.norm(problem.gradient(w))
    np.testing.assert_allclose(result[0], problem.value(w), rtol=1e-4)
    np.testing.assert_allclose(result[1], slope, atol=1e-5 * scale)
    np.testing.assert_allclose(result[2], curvature, rtol=1e-4)


def test_directional_derivatives_of_a_network():
    """b against the gradient by hand, A against its central difference, both in float64."""
    params, batch = network()
    updates = jax.tree.map(lambda p: -p + 0.3, params)
    value, slope, curvature = jax.jit(
        lambda w, u: gen_optax.directional_derivatives(functools.partial(network_loss, **batch), w, u)
    )(params, updates)
    x, y = (np.asarray(batch[k], np.float64) for k in "xy")
    w, u = flat(params), flat(updates)

    def ascent(t):
        loss, gradient = numpy_network_loss([a + t * b for a, b in zip(w, u, strict=True)], x, y)
        return loss, sum(np.sum(g * b) for g, b in zip(gradient, u, strict=True))

    np.testing.assert_allclose(value, ascent(0)[0], rtol=1e-5)
    np.testing.assert_allclose(slope, -ascent(0)[1], rtol=1e-5)
    np.testing.assert_allclose(curvature, (ascent(1e-5)[1] - ascent(-1e-5)[1]) / 2e-5, rtol=1e-4)


def test_directional_derivatives_with_aux_and_without_second_order():
    value, slope, curvature = gen_optax.directional_derivatives(
        lambda w: (jnp.sum(3 * w), {"anything": w}), jnp.ones(2), -jnp.ones(2)
    )
    assert (value, slope, curvature) == (6, 6, 0)


def test_the_candidate_is_where_apply_updates_leads():
    """Bit for bit, in every dtype: the loss that is measured is the loss of the parameters that are reached."""
    rng = np.random.default_rng(0)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        w, u = jnp.asarray(rng.normal(size=99), dtype), jnp.asarray(rng.normal(size=99), dtype)
        reached = optax.apply_updates(w, jnp.float32(0.37) * u.astype(jnp.float32))
        np.testing.assert_array_equal(_tree.step_along(w, u, jnp.float32(0.37)), reached)
        assert reached.dtype == dtype


def bound(value_fn, extra_args):
    """The loss that `update` makes of a `value_fn` and extra arguments."""
    return _loss.arguments(extra_args, value_fn)[0]


def test_only_what_value_fn_names_is_handed_on():
    seen = {}

    def value_fn(params, batch, *, scale=2.0, flag="default"):
        seen.update(batch=batch, scale=scale, flag=flag)
        return jnp.sum(params)

    loss = bound(value_fn, {"batch": 1, "scale": 3.0, "unknown": 4, "params": 5})
    assert loss(jnp.ones(2)) == 2
    assert seen == {"batch": 1, "scale": 3.0, "flag": "default"}


def test_the_first_argument_may_have_any_name():
    """Extra arguments never displace the parameters."""
    seen = {}

    def value_fn(x, y, **rest):
        seen.update(rest, y=y)
        return jnp.sum(x)

    assert bound(value_fn, {"x": jnp.zeros(3), "y": 1, "z": 2})(jnp.ones(3)) == 3
    assert seen == {"y": 1, "z": 2}


def levanter_step(optimizer, model, opt_state, batch, trainable):
    """Trains as levanter does: its `Trainer._train_step` and, with the names in it, `take_train_step`.

    The second is in lib/levanter/src/levanter/trainer_state.py of github.com/marin-community/marin (November 2026),
    where `trainables_only` and `eqx.partition` do what they do here.
    """
    eqx = pytest.importorskip("equinox")

    def compute_loss(model):
        return jnp.mean((jax.vmap(model)(batch["x"]) - batch["y"]) ** 2)

    def obj_fun(trainable_model):
        return compute_loss(eqx.combine(trainable_model, model))

    def trainables_only(tree):
        return eqx.filter(tree, trainable)

    loss, grads = eqx.filter_value_and_grad(compute_loss)(model)
    train_grads, trainable_model = trainables_only(grads), trainables_only(model)
    updates, opt_state = optimizer.update(train_grads, opt_state, params=trainable_model, obj_fn=obj_fun, loss=loss)
    return eqx.apply_updates(model, updates), opt_state, loss


@pytest.mark.parametrize("frozen", [False, True], ids=["all", "one layer frozen"])
def test_the_call_of_levanter(frozen):
    """The loss by other names, `params` by name, an equinox model with leaves that are no parameters, clipping."""
    eqx = pytest.importorskip("equinox")
    _, batch = network()
    model = eqx.nn.MLP(5, 3, 16, 1, key=jax.random.key(0))
    trainable = jax.tree.map(eqx.is_inexact_array, model)
    if frozen:
        trainable = eqx.tree_at(lambda t: (t.layers[0].weight, t.layers[0].bias), trainable, (False, False))
    tx = gen_optax.gen(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0)))
    first, opt_state = model, tx.init(eqx.filter(model, trainable))
    step, losses = eqx.filter_jit(levanter_step), []
    for _ in range(40):
        model, opt_state, loss = step(tx, model, opt_state, batch, trainable)
        losses.append(float(loss))
    state = gen_state(opt_state)
    assert losses[-1] < 0.7 * losses[0]
    assert state.learning_rate > 0
    assert state.info.num_probes > 0
    assert not state.info.notices & (gen_optax.Notice.VALUE_DIFFERS | gen_optax.Notice.GRADIENT_DIFFERS)
    assert bool(jnp.all(first.layers[0].weight == model.layers[0].weight)) == frozen


def test_a_line_search_in_the_same_chain_keeps_its_errors():
    """It knows `value_fn`, `value` and `grad` by these names, and refuses what its loss does not take."""
    gen = gen_optax.gen_sgd(controller=gen_optax.algorithm_1(init_learning_rate=0.1))
    tx = optax.chain(gen, optax.scale_by_backtracking_linesearch(5))
    w, given = jnp.ones(2), {"value": 2.0, "grad": 2 * jnp.ones(2)}

    def update(**arguments):
        return tx.update(2 * w, tx.init(w), w, **arguments)

    def bowl(w):
        return jnp.sum(w**2)

    updates, _ = update(**given, value_fn=bowl)
    assert bowl(w + updates) < 2
    with pytest.raises(TypeError, match=r"missing 1 required keyword-only argument: 'value_fn'"):
        update(**given, obj_fn=bowl)
    if tuple(map(int, optax.__version__.split(".")[:3])) >= (0, 2, 8):  # before, it dropped them
        with pytest.raises(TypeError, match=r"Unexpected keyword arguments passed to `scale_by_backtracking_lin"):
            update(**given, value_fn=bowl, batch=w)


class _Callable:
    def __call__(self, params, batch):
        return jnp.sum(params) * batch


@pytest.mark.parametrize(
    "value_fn",
    [
        lambda params, batch: (jnp.sum(params) * batch, "aux"),
        functools.partial(lambda scale, params, batch: scale * jnp.sum(params) * batch, 1.0),
        functools.partial(lambda params, batch, scale: scale * jnp.sum(params) * batch, scale=1.0),
        jax.jit(lambda params, batch: jnp.sum(params) * batch),
        jax.checkpoint(lambda params, batch: jnp.sum(params) * batch),
        _Callable(),
    ],
    ids=["aux", "partial", "keyword partial", "jit", "checkpoint", "object"],
)
def test_every_kind_of_callable(value_fn):
    assert bound(value_fn, {"batch": 3.0})(jnp.ones(2)) == 6


def test_a_missing_argument_is_named():
    def value_fn(params, images, labels, weight=1.0):
        return jnp.sum(params)

    with pytest.raises(ValueError, match=r"arguments images, labels.*\n.*tx\.update\(grads"):
        bound(value_fn, {})
    with pytest.raises(ValueError, match=r"argument labels,"):
        bound(value_fn, {"images": 1})


def test_arguments_without_a_name():
    """`update` has names for all it hands over."""

    def by_position(params, x, y, /):
        return jnp.sum(params)

    def starred(params, *batch):
        x, y = batch
        return jnp.sum(params * x - y)

    remedy = r"name the arguments, def value_fn\(params, x, y\), or close over the batch"
    with pytest.raises(ValueError, match=rf"takes x, y by position only\..*{remedy}"):
        bound(by_position, {"x": 1, "y": 2})
    with pytest.raises(ValueError, match="not enough values") as caught:
        bound(starred, {"x": 1, "y": 2})(jnp.ones(2))
    (note,) = caught.value.__notes__
    assert re.search(rf"nothing for \*batch\..*{remedy}", note)
    assert bound(lambda params, *unused: jnp.sum(params), {"x": 1})(jnp.ones(2)) == 2


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (np.ones(3), r"jnp\.mean"),
        (np.ones((1,)), r"jnp\.mean"),
        (1, "floating-point"),
        (True, "floating-point"),
        (1j, "floating-point"),
    ],
    ids=["vector", "one element", "integer", "bool", "complex"],
)
def test_a_loss_that_is_no_real_scalar(value, remedy):
    with pytest.raises(ValueError, match=rf"value_fn must return a real scalar.*got shape .* dtype .*{remedy}"):
        _loss.scalar(lambda w: value)(jnp.ones(2))


def test_inner_products_do_not_overflow_in_half_precision():
    a = jnp.full(1000, 200.0, jnp.float16)
    np.testing.assert_allclose(_tree.inner_product([a], [a]), 4e7, rtol=1e-6)
    assert _tree.inner_product([a], [a]).dtype == jnp.float32


@pytest.mark.parametrize(("largest", "power"), [(1.0, 1.0), (3.0, 2.0), (0.3, 0.25), (0.0, 1.0), (1e30, 2.0**99)])
def test_power_of_two(largest, power):
    assert _tree.power_of_two([jnp.array([0.0, -largest]), jnp.zeros(0), jnp.array(7)]) == power
