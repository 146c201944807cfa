"""The contract of update: extra arguments, jax and optax transformations around it, structure and dtypes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KINDS, gen_state, greedy, network, network_loss, paths_and_types, settings_of, train

import gen_optax

# Algorithm 1 with every kind of probe along the step, and the default with no rate given.
RULES = [("three points", 0.02), ("free slope", 0.02), ("exact", 0.02), ("retrospective", None)]


def bowl(w):
    return jnp.sum((w - 1.0) ** 2)


def applied(tx, w=None, **extra):
    """Updates and state after one jitted call along the gradient of `bowl`."""
    w = jnp.zeros(2) if w is None else w
    return jax.jit(lambda u, s, w: tx.update(u, s, w, **extra))(-2 * (w - 1), tx.init(w), w)


def test_the_updates_are_scaled_and_nothing_else():
    """Two steps by hand: eta u before the first probe, the minimiser after it."""
    tx = gen_optax.scale_by_gen(probe=gen_optax.exact(), **greedy(0.125) | {"every": 2})
    update = jax.jit(functools.partial(tx.update, value_fn=bowl))
    w = jnp.zeros(2)
    updates, state = update(jnp.array([2.0, 2.0]), tx.init(w), w)
    np.testing.assert_array_equal(updates, [0.25, 0.25])
    assert (state.count, state.info.num_probes) == (1, 0)
    updates, state = update(jnp.array([2.0, 2.0]), state, w)
    np.testing.assert_allclose(updates, [1.0, 1.0], rtol=1e-6)
    assert (state.count, state.info.num_probes, state.info.num_accepted) == (2, 1, 1)


@pytest.mark.parametrize(
    ("name", "every", "due"),
    [
        ("retrospective", 1, [1, 2, 3, 4, 5, 6]),
        ("retrospective", 2, [2, 4, 6]),
        ("retrospective", 4, [4]),
        ("three points", 1, [1, 2, 3, 4, 5, 6]),
        ("exact", 2, [2, 4, 6]),
        ("free slope", 4, [4]),
    ],
)
def test_when_probes_are_due(name, every, due):
    """Every Phi-th call; a probe that looks back has nothing to look at in the first."""
    tx = gen_optax.gen_sgd(probe=KINDS[name], **greedy(0.01) | {"every": every})
    _, _, _, states = train(tx, jnp.zeros(2), bowl, 6)
    probes = np.diff(gen_state(states).info.num_probes, prepend=0)
    expected = [t for t in due if t > 1 or name != "retrospective"]
    np.testing.assert_array_equal(np.flatnonzero(probes) + 1, expected)


@pytest.mark.parametrize(
    "probe",
    [gen_optax.retrospective(), gen_optax.finite_difference(independent=True), gen_optax.exact(independent=True)],
)
def test_the_first_call_finds_an_unknown_rate(probe):
    tx = gen_optax.gen_sgd(probe=probe, every=1000)
    _, _, _, states = train(tx, jnp.zeros(2), bowl, 1)
    assert gen_state(states).learning_rate[0] > 0
    assert gen_state(states).applied_learning_rate[0] > 0


def test_value_fn_of_update_wins_over_that_of_construction():
    def steeper(w):
        return 3 * bowl(w)

    options = {"probe": gen_optax.exact(), **greedy(0.01)}
    for given, extra, slope in ((bowl, {}, 8), (bowl, {"value_fn": steeper}, 24), (None, {"value_fn": steeper}, 24)):
        _, state = applied(gen_optax.scale_by_gen(**options, value_fn=given), **extra)
        assert state.info.slope == slope


def test_extra_arguments_go_by_name_and_unknown_ones_nowhere():
    def value_fn(w, batch, *, scale=1.0):
        return scale * jnp.sum((w - batch) ** 2)

    tx = gen_optax.scale_by_gen(probe=gen_optax.exact(), **greedy(0.1))
    _, state = applied(tx, value_fn=value_fn, batch=jnp.ones(2), scale=2.0, unknown=3, key=jax.random.key(0))
    assert state.info.slope == 16
    applied(gen_optax.gen_sgd(), value_fn=bowl, value=bowl(jnp.zeros(2)), losses=1.0, labels=None, text="anything")


@pytest.mark.parametrize("name", ["three points", "map", "exact", "retrospective"])
def test_aux_changes_nothing(name):
    """(loss, aux), any tree in aux: bit for bit the same training."""

    def with_aux(w):
        return bowl(w), {"w": w, "n": 1}

    tx = gen_optax.gen_sgd(**settings_of(name, 0.1), every=1)

    def run(value_fn):
        w, state = jnp.zeros(2), tx.init(jnp.zeros(2))
        for _ in range(2):
            grad = jax.grad(bowl)(w)
            updates, state = tx.update(grad, state, w, value_fn=value_fn, value=bowl(w))
            w = w + updates
        return w, state

    jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda: run(bowl))(), jax.jit(lambda: run(with_aux))())


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("three points", [(True, True), (False, False)]),
        ("free slope", [(True, True), (False, True)]),
        ("exact", [(True, True), (False, False)]),
        ("retrospective", [(True, True), (False, False)]),
    ],
)
def test_value_and_grad_only_save_work(name, given):
    """What is measured is the same without them."""
    params, batch = network()
    tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(**settings_of(name, 0.05), every=1))
    rates = []
    for value, grad in given:
        _, state, _, _ = train(tx, params, network_loss, 6, value=value, grad=grad, **batch)
        rates.append(state[-1].learning_rate)
    np.testing.assert_allclose(rates, rates[0], rtol=2e-3)
    assert abs(rates[0] - 0.05) > 1e-3


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("three points", given) for given in (np.float64(8.0), 8.0, np.float32(8.0), "bfloat16", "float16")),
        *(("retrospective", given) for given in (np.float64(8.0), 8.0, np.float32(8.0), "bfloat16", "float16")),
        ("free slope", "bfloat16"),
        ("exact", np.float64(8.0)),
    ],
)
def test_a_value_of_another_type(name, given):
    """A Python number, NumPy's float64, a half-precision logging value: the state keeps its types."""
    value = jnp.asarray(8.0, given) if isinstance(given, str) else given
    tx = gen_optax.gen_sgd(**settings_of(name, 0.125), every=1)
    w = jnp.zeros(2)
    state = before = tx.init(w)
    for _ in range(2):  # a first rate, then a probe
        updates, state = tx.update(-8 * jnp.ones(2), state, w, value=value, value_fn=lambda w: 4 * bowl(w))
        assert paths_and_types(state) == paths_and_types(before)
        w = optax.apply_updates(w, updates)
    assert gen_state(state).info.num_probes > 0


DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64]


@pytest.mark.parametrize(
    ("name", "controller", "num_steps", "dtypes"),
    [
        ("three points", "algorithm_1", 40, DTYPES),
        ("free slope", "algorithm_1", 100, DTYPES[::3]),
        ("exact", "algorithm_1", 40, DTYPES),
        ("retrospective", "algorithm_1", 100, DTYPES[1:3]),
        ("retrospective", "balance", 40, DTYPES[:2]),
        ("retrospective", "balance", 100, DTYPES[2:]),
    ],
)
def test_structure_and_dtypes_never_drift(name, controller, num_steps, dtypes):
    """Through scan (which refuses any drift) and, compared by hand, over one call; and the loss falls."""
    given = {"init_learning_rate": 1e-2, "smoothing": 0.95, "clamp": 2.0} if controller == "algorithm_1" else {}
    options = {"controller": getattr(gen_optax, controller)(**given), "probe": KINDS[name], "num_steps": num_steps}
    for dtype in dtypes:
        with jax.enable_x64(dtype == jnp.float64):
            params, batch = network(dtype=dtype)
            tx = gen_optax.gen_sgd(every=2, **options)
            found, state, losses, _ = train(tx, params, network_loss, 40, **batch)
            assert paths_and_types(found) == paths_and_types(params)
            assert paths_and_types(state) == paths_and_types(tx.init(params))
            scalar = jnp.float64 if dtype == jnp.float64 else jnp.float32
            gen = gen_state(state)
            looks_back = name == "retrospective"
            anchor = [x.dtype for x in jax.tree.leaves(gen.probe.anchor)] if looks_back else []
            gen = gen._replace(alignment=())  # float32 at any precision
            scalars = jax.tree.leaves(gen._replace(probe=gen.probe._replace(anchor=()) if looks_back else gen.probe))
            kinds = {scalar, jnp.int32, jnp.bool_} | ({jnp.uint32} if looks_back else set())
            assert {x.dtype for x in scalars} == {jnp.dtype(t) for t in kinds}
            assert set(anchor) == ({jnp.dtype(dtype)} if looks_back else set())
            assert all(x.shape == () or x.dtype == jnp.uint32 for x in scalars)
            assert np.all(np.isfinite(np.asarray(losses, np.float32)))
            # Three points in half precision see only noise, and say so; the others train in any precision.
            blind = name in ("three points", "free slope") and gen.info.num_accepted < 20
            assert losses[-1] < losses[0] or blind, dtype


@pytest.mark.parametrize(
    ("updates_dtype", "dtype"), [(jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32), (jnp.bfloat16, jnp.bfloat16)]
)
@pytest.mark.parametrize("name", KINDS)
def test_updates_keep_their_own_dtype(name, updates_dtype, dtype):
    """Mixed precision: float32 moments over bfloat16 parameters and the other way round."""
    w = jnp.zeros(2, dtype)
    tx = gen_optax.scale_by_gen(probe=KINDS[name], **greedy(0.125))

    @jax.jit
    def two(w):
        state, u = tx.init(w), jnp.ones(2, updates_dtype)
        for _ in range(2):
            updates, state = tx.update(u, state, w, value_fn=bowl, grad=jax.grad(bowl)(w))
        return updates

    assert two(w).dtype == updates_dtype


@pytest.mark.parametrize("name", KINDS)
def test_no_recompilation_on_the_second_call(name):
    """Nor on any later one, due or not, whatever the optimizer around it."""
    params, batch = network()
    tx = gen_optax.gen_adamw(**settings_of(name), every=2, num_steps=10)
    traces = []

    @jax.jit
    def step(params, state, batch):
        traces.append(1)
        value, grads = jax.value_and_grad(network_loss)(params, **batch)
        updates, state = tx.update(grads, state, params, value=value, value_fn=network_loss, **batch)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(4):
        params, state = step(params, state, batch)
    assert len(traces) == 1
    assert step._cache_size() == 1


@pytest.mark.parametrize(("name", "rate"), [*RULES, ("retrospective", 0.02)])
def test_params_and_state_can_be_donated(name, rate):
    """No two of them are the same buffer, from the first call on."""
    rate = None if rate is None else jnp.float32(rate)
    tx = gen_optax.gen_adamw(**settings_of(name, rate), every=2)
    w = jnp.zeros(3)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(w, state):
        value, grad = jax.value_and_grad(bowl)(w)
        updates, state = tx.update(grad, state, w, value=value, value_fn=bowl)
        return optax.apply_updates(w, updates), state

    state = tx.init(w)
    for _ in range(4):
        w, state = step(w, state)
    assert np.all(np.isfinite(w))
    if rate is not None:
        assert not rate.is_deleted()


@pytest.mark.parametrize("rule", ["default", "algorithm_1"])
def test_state_and_params_share_no_buffer_without_jit(rule):
    """Steps taken one operation at a time, and then a step that donates what they left."""
    controller = {"default": None, "algorithm_1": gen_optax.algorithm_1()}[rule]
    tx = gen_optax.gen_sgd(controller=controller, probe=gen_optax.retrospective(), every=1)
    w = jnp.zeros(3)
    state = tx.init(w)
    for _ in range(3):
        value, grad = jax.value_and_grad(bowl)(w)
        updates, state = tx.update(grad, state, w, value=value, value_fn=bowl)
        leaves = [*jax.tree.leaves(state), w, updates, value, grad]
        buffers = [x.unsafe_buffer_pointer() for x in leaves]
        assert len(set(buffers)) == len(buffers)
        w = optax.apply_updates(w, updates)


@pytest.mark.parametrize(("name", "rate"), [("three points", 0.02), ("exact", 0.02), ("retrospective", None)])
def test_inside_cond(name, rate):
    """As one branch of a user's lax.cond, as in apply_if_finite or a GAN's alternating steps."""
    tx = gen_optax.gen_sgd(**settings_of(name, rate), every=2)

    @jax.jit
    def step(w, state, take):
        value, grad = jax.value_and_grad(bowl)(w)
        return jax.lax.cond(
            take,
            lambda: tx.update(grad, state, w, value=value, value_fn=bowl),
            lambda: (jnp.zeros_like(w), state),
        )

    w = jnp.zeros(2)
    state = tx.init(w)
    for take in (True, False, True):
        updates, state = step(w, state, take)
        w = optax.apply_updates(w, updates)
    assert gen_state(state).count == 2
    assert gen_state(state).info.num_probes == 1


@pytest.mark.parametrize(("name", "rate"), RULES)
def test_vmap_over_models(name, rate):
    """Each model has its own rate, the one it finds when it is trained alone."""
    curvatures = jnp.array([0.1, 1.0, 30.0])

    def run(curvature):
        tx = gen_optax.gen_sgd(**settings_of(name, rate), every=2, num_steps=30)
        w, state, losses, _ = train(tx, jnp.array([0.0, 3.0]), lambda w: curvature * bowl(w), 20)
        return w, state[-1].learning_rate, losses

    together, alone = jax.jit(jax.vmap(run))(curvatures), jax.jit(run)
    for i, curvature in enumerate(curvatures):
        for a, b in zip(together, alone(curvature), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "rate"), [*RULES, ("map", 0.02)])
def test_grad_through_a_training_loop(name, rate):
    """Learning rates are constants to the outside: the derivative is that of SGD at the rates that were applied."""
    tx = gen_optax.gen_sgd(**settings_of(name, rate), every=2)
    curvature = jnp.array([1.0, 3.0])

    def loss_fn(w, target):
        return jnp.sum(curvature * (w - target) ** 2)

    def end(start, target, rates=None):
        def step(carry, rate):
            w, state = carry
            value, grad = jax.value_and_grad(loss_fn)(w, target)
            if rates is None:
                updates, state = tx.update(grad, state, w, value=value, value_fn=loss_fn, target=target)
                return (w + updates, state), state[-1].applied_learning_rate
            return (w - rate * grad, state), rate

        (w, _), found = jax.lax.scan(step, (start, tx.init(start)), rates, length=6)
        return jnp.sum(w**2), found

    start, target = jnp.array([2.0, -1.0]), jnp.array([0.5, 0.25])
    gradient = jax.jit(jax.grad(end, argnums=(0, 1), has_aux=True))
    found, rates = gradient(start, target)
    expected, _ = gradient(start, target, rates)
    assert np.all(rates > 0)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)


OF_GEN = {"every": 2, "num_steps": 20, "min_learning_rate": 1e-3, "max_learning_rate": 0.3}
OF_CONTROLLERS = {
    "algorithm_1": {"init_learning_rate": 0.02, "smoothing": 0.5, "clamp": 3.0},
    "balance": {field.name: field.default for field in dataclasses.fields(gen_optax.balance)}
    | {"init_learning_rate": 0.02, "search_probes": 3},
}


@pytest.mark.parametrize(
    ("name", "controller"), [(name, "algorithm_1") for name in KINDS] + [("retrospective", "balance")]
)
def test_traced_settings(name, controller):
    """Every number may be traced: a sweep over settings is one vmap. Against the same numbers as constants."""
    numbers = OF_GEN, OF_CONTROLLERS[controller]

    def run(numbers):
        of_gen, of_controller = numbers
        chosen = getattr(gen_optax, controller)(**of_controller)
        tx = gen_optax.gen_sgd(probe=KINDS[name], controller=chosen, **of_gen)
        return train(tx, jnp.zeros(2), bowl, 8)[1][-1].learning_rate

    expected = jax.jit(lambda: run(numbers))()
    found = jax.jit(run)(jax.tree.map(jnp.asarray, numbers))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert expected != np.float32(0.02)


@pytest.mark.parametrize(
    ("name", "static", "dtype"),
    [
        ("retrospective", (), jnp.float32),
        ("retrospective", ("probe", "every", "num_steps", "controller"), jnp.bfloat16),
        ("three points", (), jnp.bfloat16),
        ("three points", ("probe", "every", "num_steps", "controller"), jnp.float32),
    ],
)
def test_inject_hyperparams(name, static, dtype):
    """Settings that are numbers can be changed between steps; the rest passes through."""
    make = optax.inject_hyperparams(gen_optax.scale_by_gen, static_args=static)
    options = settings_of(name, 0.01) | {"every": 2, "num_steps": 20, "max_learning_rate": 10.0}
    tx = optax.chain(optax.sgd(1.0), make(**options))
    w = jnp.zeros(2, dtype)
    w, state, _, states = train(tx, w, bowl, 6)
    assert gen_state(states).info.num_probes[-1] == (5 if name == "retrospective" else 3)  # a rate is being found
    assert paths_and_types(state) == paths_and_types(tx.init(w))
    state[-1].hyperparams["max_learning_rate"] = jnp.asarray(1e-3, dtype)
    _, state = jax.jit(functools.partial(tx.update, value_fn=bowl))(w, state, w)
    np.testing.assert_allclose(gen_state(state).learning_rate, 1e-3, rtol=1e-2)
    if dtype == jnp.float32:
        plain = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(**options))
        rates = gen_state(train(plain, jnp.zeros(2), bowl, 6)[3]).learning_rate
        np.testing.assert_allclose(gen_state(states).learning_rate, rates, rtol=1e-5)


def test_inject_hyperparams_around_a_controller():
    """The numbers of a controller are hyperparameters of a function that makes it, and so are schedules of them."""

    def make(base, init_learning_rate, smoothing, decay):
        controller = gen_optax.algorithm_1(init_learning_rate=init_learning_rate, smoothing=smoothing)
        options = {"controller": controller, "probe": gen_optax.exact(), "every": 1, "value_fn": bowl, "decay": decay}
        return gen_optax.gen(base, **options)

    decay = optax.cosine_decay_schedule(1.0, 10)
    injected = optax.inject_hyperparams(make, static_args=("decay",))
    tx = injected(optax.adam(1.0), 0.002, smoothing=lambda count: jnp.where(count < 1, 1.0 - 1e-7, 0.0), decay=decay)
    w = jnp.zeros(2)
    update = jax.jit(tx.update)
    updates, state = update(jax.grad(bowl)(w), tx.init(w), w)
    np.testing.assert_allclose(updates, 0.002, rtol=1e-4)
    updates, state = update(jax.grad(bowl)(w), state, w)  # the bowl is least at 1
    np.testing.assert_allclose(updates, decay(1), rtol=1e-4)
    assert state.hyperparams["smoothing"] == 0
    state.hyperparams["smoothing"] = jnp.float32(0.25)


@pytest.mark.parametrize("name", KINDS)
def test_map_params_finds_the_parameter_shaped_state(name):
    """Adam's moments, the average and, of a probe that looks back, the parameters; not one of the scalars."""
    params, _ = network()
    tx = gen_optax.gen_adam(**settings_of(name), average=True)
    marked = optax.tree.map_params(tx, lambda _: "params", tx.init(params), transform_non_params=lambda _: "other")
    leaves = jax.tree.leaves(marked)
    assert leaves.count("params") == (4 if name == "retrospective" else 3) * len(jax.tree.leaves(params))
    gen = gen_state(marked)
    probe = gen.probe._replace(anchor=()) if name == "retrospective" else ()
    scalars = jax.tree.leaves(gen._replace(probe=probe, average=gen.average.last_call))
    assert set(scalars) == {"other"}


def test_the_rate_is_found_by_name_in_any_chain():
    tx = optax.chain(optax.clip(1.0), gen_optax.gen_adamw(**settings_of("retrospective", 0.25), value_fn=bowl))
    state = tx.init(jnp.zeros(2))
    assert optax.tree.get(state, "learning_rate") == 0.25
    state = optax.tree.set(state, learning_rate=jnp.float32(0.5))
    assert optax.tree.get(state, "learning_rate") == 0.5


@pytest.mark.parametrize("average", [True, False])
def test_the_count_is_found_by_name(average):
    """Where the base counts nothing itself, it is the only one."""
    state = gen_optax.gen_sgd(average=average).init(jnp.zeros(2))
    assert optax.tree.get(state, "count") == 0


def test_what_was_measured_is_found_by_name():
    state = gen_optax.gen_adamw().init(jnp.zeros(2))
    for name in ("applied_learning_rate", *gen_optax.GenInfo._fields):
        assert optax.tree.get(state, name) == 0, name


@pytest.mark.parametrize("name", KINDS)
def test_python_scalars_as_parameters(name):
    """optax takes them, so do we, and a second call does not compile anew."""
    tx = gen_optax.gen_sgd(**settings_of(name), every=1)
    step = jax.jit(lambda w, s: tx.update(2 * (w - 3.0), s, w, value=(w - 3.0) ** 2, value_fn=lambda w: (w - 3.0) ** 2))
    w = 1.0
    state = tx.init(w)
    for _ in range(3):
        updates, state = step(w, state)
        w = float(w + updates)
    assert 1 < w < 5
    assert step._cache_size() == 1


def test_the_state_and_info_are_what_the_design_says():
    state = "count learning_rate applied_learning_rate probe controller average alignment info"
    info = "value slope curvature optimal_learning_rate r_squared status accepted "
    info += "num_probes num_accepted num_ascents notices"
    assert " ".join(gen_optax.GenState._fields) == state
    assert " ".join(gen_optax.GenInfo._fields) == info
    state = gen_optax.scale_by_gen(controller=gen_optax.algorithm_1(), probe=gen_optax.exact()).init(jnp.zeros(1000))
    assert all(jnp.shape(x) == () for x in jax.tree.leaves(state))
    assert (state.probe, state.controller, state.average, state.alignment) == ((), (), (), ())
    large = [x for x in jax.tree.leaves(gen_optax.scale_by_gen().init(jnp.zeros(1000))) if jnp.shape(x) != ()]
    # The anchor, fingerprints of batches, the average, and sketches of the parameters.
    assert [x.shape for x in large] == [(1000,), (16,), (1000,), (2, 1, 256)]


@pytest.mark.parametrize("probe", [gen_optax.exact(), gen_optax.retrospective()], ids=["step", "path"])
def test_at_the_end_of_the_counter_calls_do_not_all_probe(probe):
    """Every 16th does, up to there. The counter stands still then, and probes are made at alarms only."""
    last, value_fn = np.iinfo(np.int32).max, lambda w: -jnp.sum(w)
    tx = gen_optax.scale_by_gen(controller=gen_optax.algorithm_1(), probe=probe, every=16, average=True)

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jnp.ones(2), state, w, value=value_fn(w), value_fn=value_fn)
        return (w + updates, state), state

    w = jnp.zeros(2)
    state = tx.init(w)
    state = state._replace(count=jnp.int32(last - 40), average=state.average._replace(last_call=jnp.int32(last - 41)))
    _, states = jax.lax.scan(step, (w, state), length=80)
    probed = np.diff(states.info.num_probes, prepend=0) > 0
    calls = np.minimum(last - 39 + np.arange(80), last)
    np.testing.assert_array_equal(states.count, calls)
    np.testing.assert_array_equal(probed, calls % 16 == 0)
    assert probed.sum() == 2
    np.testing.assert_array_equal(states.average.last_call, last - 41)
