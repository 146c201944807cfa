"""Specifications of methods, and every method on a small workload."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import toy

import gen_optax
from benchmarks import methods, runner, store


@pytest.mark.parametrize(
    "text",
    [
        "gen",
        "gen:every=4,probe=retrospective,sigma=1.5",
        "gen:candidates=-1/-0.5/0/0.5/1,probe=finite_difference",
        "gen_horizon:init_learning_rate=none,max_change=2",
        "baseline:learning_rate=0.00316228,schedule=linear",
        "gen:free_slope=true,probe=finite_difference",
    ],
)
def test_a_specification_is_written_as_it_is_read(text):
    assert str(methods.parse(text)) == text


def test_settings_are_read_by_their_kind():
    spec = methods.parse("gen: sigma=2, smoothing=1e-1,decay=cosine,num_steps=none,candidates=-1/0/1")
    assert spec.options == {
        "sigma": 2,
        "smoothing": 0.1,
        "decay": "cosine",
        "num_steps": None,
        "candidates": (-1, 0, 1),
    }
    assert str(spec) == "gen:candidates=-1/0/1,decay=cosine,num_steps=none,sigma=2,smoothing=0.1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sgdd", "Unknown method 'sgdd'. Known: baseline, "),
        ("gen:sigma", "A setting is key=value, got 'sigma'"),
        ("baseline", "learning_rate"),
        ("zoom:steps=3", "steps"),
        ("gen:candidates=-1/0/1", "candidates: settings of a probe, which is not named"),
        ("gen_paper:smoothing=2", "smoothing must be in"),
        ("gen:smooth=log", "smooth: no setting of gen, of its probe or of Balance"),
        ("gen_paper:sigma=2", "sigma: no setting of gen, of its probe or of Algorithm1"),
        ("gen:max_change=none", "max_change must be greater than 1"),
        ("gen:probe=exact", "balance cannot use"),
        ("gen_horizon:candidates=-2/-1/0,probe=finite_difference", "balance cannot use"),
        ("baseline:learning_rate=1,schedule=step", "Unknown schedule 'step'"),
    ],
)
def test_errors_say_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        methods.build(methods.parse(text), toy(), 10)


def step_of(spec, workload, num_steps=40):
    method = methods.build(methods.parse(spec), workload, num_steps)
    state, step = runner.start(workload, method, *workload.init(jax.random.key(0)))
    return method, state, step, runner.batches_for(workload, method, 0, 16)


@pytest.mark.parametrize("spec", methods.QUALITY)
def test_every_method_steps(spec):
    workload = toy(base="sgd" if spec == "lqa" else "adamw")
    method, state, step, batches = step_of(spec, workload)
    start = jax.tree.map(jnp.copy, state.params)
    for _ in range(3):
        state, scalars = step(state, *next(batches), jax.random.key(1))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, start)
    assert all(np.isfinite(distance) for distance in jax.tree.leaves(moved))
    assert max(jax.tree.leaves(moved)) > 0
    assert jnp.isfinite(scalars["loss"])
    assert jnp.shape(scalars["learning_rate"]) == ()
    point = method.eval_params(state.optimizer, state.params)
    assert jax.tree.structure(point) == jax.tree.structure(state.params)
    assert step._cache_size() == 1


@pytest.mark.parametrize("base", methods.BASES)
def test_every_base_proposes_a_descent_at_rate_1(base):
    workload = toy()
    params, model_state = workload.init(jax.random.key(0))
    batch = next(workload.batches(0, 16))

    def loss(p):
        return workload.loss_fn(p, model_state, batch, jax.random.key(0))[0]

    tx = optax.with_extra_args_support(methods.BASES[base](1.0, 0.0))
    grads = jax.grad(loss)(params)
    state = tx.init(params)
    for _ in range(2):  # ADOPT only gathers statistics at its first step
        updates, state = tx.update(grads, state, params, value_fn=loss)
    assert optax.tree.vdot(grads, updates) < 0


def test_paper_is_algorithm_1():
    """Two steps of SGD on a parabola, by hand: eta* = b / A = 1/4, and eta_8 = 0.9 eta_0 + 0.1 / 4."""

    def loss_fn(params, model_state, batch, key):
        return 2 * jnp.sum(params["b0"] ** 2), model_state

    workload = toy(
        base="sgd",
        weight_decay=0.0,
        loss_fn=loss_fn,
        init=lambda key: ({"b0": jnp.array([3.0])}, {}),
    )
    _, state, step, batches = step_of("gen_paper:base=plain_sgd", workload)
    rates = []
    for _ in range(8):
        state, scalars = step(state, *next(batches), jax.random.key(0))
        rates.append(float(scalars["learning_rate"]))
    np.testing.assert_allclose(rates[:7], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(rates[7], 0.9e-3 + 0.1 / 4, rtol=1e-2)


def rates_of(spec, steps=60):
    _, state, step, batches = step_of(spec, toy(), steps)
    rates = []
    for _ in range(steps):
        state, scalars = step(state, *next(batches), jax.random.key(1))
        rates.append(float(scalars["learning_rate"]))
    return np.array(rates)


def test_constants_of_the_rule_change_the_run():
    first, lower = rates_of("gen", 1), rates_of("gen:first_fraction=1e-6", 1)
    assert lower == pytest.approx(1e-6 / gen_optax.balance().first_fraction * first)
    assert not np.allclose(rates_of("gen_horizon:steps_together=4,every=4"), rates_of("gen_horizon:every=4"))


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("gen_horizon", "gen:num_steps=10,sigma=1.8"),
        ("gen_horizon:steps_together=16", "gen_horizon"),
        ("gen_paper", "gen_paper:clamp=none,every=8,init_learning_rate=0.001,probe=finite_difference,smoothing=0.9"),
        ("lqa", "gen_paper:every=1,smoothing=0"),
    ],
)
def test_two_ways_to_say_the_same(spec, same):
    np.testing.assert_allclose(rates_of(spec, 10), rates_of(same, 10), rtol=1e-3)


@pytest.mark.parametrize("family", ["gen", "gen_horizon"])
def test_without_settings_it_is_what_gen_optax_does_by_itself(family, monkeypatch):
    named = rates_of(family)
    gen = gen_optax.gen
    monkeypatch.setattr(gen_optax, "gen", lambda base, controller, probe, **settings: gen(base, **settings))
    np.testing.assert_array_equal(rates_of(family), named)


GONE = (
    "smooth=",
    "max_change=none",
    "blind_ascent=",
    "setback=",
    "smoothing=",
    "max_weight=",
    "average=8",
    "probe=exact",
    "probe=finite_difference",
)
"""Settings in stored cells that today's `gen` does not have, or not so; the last two on the gradient's own batch."""


def test_every_stored_method_can_be_built_or_is_refused():
    stored = {cell["key"]["method"] for cell in store.Store(store.RESULTS).cells()}
    assert any(map(is_gone, stored))
    for text in stored:
        if is_gone(text):
            with pytest.raises(
                ValueError, match=r"no setting of gen|average must be|must be greater than 1|balance cannot use"
            ):
                methods.build(methods.parse(text), toy(), 10)
        else:
            methods.build(methods.parse(text), toy(), 10)


def is_gone(text):
    return text.startswith(("gen:", "gen_horizon:")) and "batch=" not in text and any(part in text for part in GONE)


def test_schedules_begin_and_end_where_they_should():
    values = {
        name: [float(methods.schedule(name, 2.0, 100)(t)) for t in (0, 5, 100)]
        for name in (*methods.SCHEDULES, "inverse_sqrt", "hold_0.04")
    }
    assert values["constant"] == [2, 2, 2]
    assert values["linear"] == pytest.approx([2, 1.9, 0])
    assert values["warmup_cosine"] == pytest.approx([0, 2, 0], abs=1e-6)
    assert values["hold_0.04"] == pytest.approx([2, 2 * 95 / 96, 0])
    assert values["inverse_sqrt"] == pytest.approx([2, 2 / 1.05**0.5, 2 / 2**0.5])


def test_average_is_the_polynomial_mean_of_the_iterates():
    method, state, step, batches = step_of("dog:average=8", toy())
    mean = None
    for t in range(4):
        state, _ = step(state, *next(batches), jax.random.key(1))
        point, weight = np.asarray(state.params["w1"]), 9 / (t + 9)
        mean = point if mean is None else (1 - weight) * mean + weight * point
    np.testing.assert_allclose(method.eval_params(state.optimizer, state.params)["w1"], mean, rtol=1e-5)


@pytest.mark.parametrize(("spec", "averaged"), [("gen", True), ("gen:average=false", False), ("gen_horizon", False)])
def test_gen_is_evaluated_at_its_average(spec, averaged):
    method, state, step, batches = step_of(spec, toy())
    for _ in range(20):
        state, _ = step(state, *next(batches), jax.random.key(1))
    point = method.eval_params(state.optimizer, state.params)
    assert np.array_equal(point["w1"], state.params["w1"]) != averaged


def test_schedule_free_is_evaluated_at_its_own_point():
    method, state, step, batches = step_of("schedule_free_sgd", toy())
    for _ in range(3):
        state, _ = step(state, *next(batches), jax.random.key(1))
    point = method.eval_params(state.optimizer, state.params)
    assert not np.allclose(point["w1"], state.params["w1"])
