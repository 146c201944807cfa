"""The laws of the design, over random problems, bases and settings: what a user's situation may not change.

1.  Units of the loss: here; losses of 1e30 and 1e-30 in `test_failures`, the cold start at all scales in
    `test_cold_start`.
2.  Zero of the loss: here.
3.  Units of the step: here.
4.  Bystanders: here; leaves without entries and None in `test_failures`, masks in `test_masks`, one rate per group too.
5.  Placement: loops, `scan`, `vmap`, eager and resumed runs here; eager step by step in `test_eager`, checkpoints on
    disk in `test_checkpoint`, eight devices in `test_devices`, two processes in `test_hosts`.
6.  What is optional only saves work: here; that it does save it in `test_gen`, `test_eager` and `test_cost`.
7.  Monotone caution: here; the law that is monotone in `test_balance`.
8.  The paper: `test_algorithm_1`.
9.  Noise-free problems converge: `test_contrib`, optax's own suite.

Powers of two change no digit, so there the rates are compared to the bit; elsewhere to rounding, as far as training
does not magnify it.
"""

import functools
import pickle
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import gen_state, measurement, observed

import gen_optax
from gen_optax import ProbeStatus

STEPS, SEARCH = 150, 50  # the search ends at call 51; then probes come at 64, 80, ...
BASES = {
    "sgd": optax.sgd(1.0),
    "momentum": optax.sgd(1.0, momentum=0.9),
    "adam": optax.adam(1.0, eps=0.0),
    "lion": optax.lion(1.0, weight_decay=0.0),
}
PROBLEMS = {"sgd": "linear", "momentum": "network", "adam": "network", "lion": "linear"}  # one for each base
SCALE_FREE = ("adam", "lion")
PAPER = gen_optax.algorithm_1(init_learning_rate=1e-2)
# A sign that rounding turns is a step elsewhere, and three points along one step magnify that: no Lion for the paper.
RULES = [(base, None) for base in BASES] + [(base, PAPER) for base in ("sgd", "momentum", "adam")]


def str_or_type(x):
    return x if isinstance(x, str) else "default" if x is None else "paper"


rules = pytest.mark.parametrize(("base", "controller"), RULES, ids=str_or_type)
FEW_RULES = [("sgd", None), ("adam", None), ("adam", PAPER)]
SEEDS = st.integers(0, 2**16)


def few(examples):
    """Each example is a training run or two: too much to look for the smallest one that fails."""
    return hypothesis.settings(max_examples=examples, phases=[hypothesis.Phase.generate])


class Units(NamedTuple):
    """What a problem is measured in."""

    loss: Any = 1.0
    zero: Any = 0.0
    step: Any = 1.0
    params: Any = 1.0

    def of_rate(self, base):
        """By how much the rate is larger."""
        return (self.params if base in SCALE_FREE else self.params**2 / self.loss) / self.step


def linear_loss(params, batch):
    prediction = batch["x"][:, :5] @ params["first"] + batch["x"][:, 5:] @ params["second"]
    return jnp.mean((prediction - batch["y"][:, 0]) ** 2) / 2


def network_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - batch["y"]) ** 2) / 2


LOSSES = {"linear": linear_loss, "network": network_loss}


@functools.lru_cache(maxsize=64)
def drawn(name, seed, repeats=1):
    """Parameters, and noisy batches that come so many times in a row; one of them is an outlier."""
    rng = np.random.default_rng(seed)
    params = {
        "linear": {"first": rng.normal(size=5), "second": rng.normal(size=3)},
        "network": {"in": rng.normal(size=(8, 6)) / 3, "bias": rng.normal(size=6) / 9, "out": rng.normal(size=(6, 2))},
    }[name]
    x = rng.normal(size=(STEPS, 16, 8))
    y = np.sin(x @ rng.normal(size=(8, 2)) / 2) + 0.3 * rng.normal(size=(STEPS, 16, 2))
    y[rng.integers(70, STEPS - 20)] *= 5.0
    batches = {"x": x[np.arange(STEPS) // repeats], "y": y[np.arange(STEPS) // repeats]}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, batches))


def seen(state, value):
    state = gen_state(state)
    last = getattr(getattr(state.probe, "batches", None), "last", 0)
    info = {name: getattr(state.info, name) for name in ("status", "num_probes", "notices")}
    return {"rate": state.learning_rate, "loss": value, "batches": last} | info


@functools.partial(jax.jit, static_argnames=("base", "controller"))
def _trained(params, batches, units, of_rate, *, base, controller):
    tx = gen_optax.gen(optax.chain(BASES[base], optax.scale(units.step)), controller=controller)

    def loss_fn(params, batch):
        return units.loss * LOSSES[PROBLEMS[base]](scaled(params, 1 / units.params), batch) + units.zero

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn, batch=batch)
        return (optax.apply_updates(params, updates), state), seen(state, value)

    params = scaled(params, units.params)
    first, state = tx.init(params)
    state = first, state._replace(learning_rate=state.learning_rate * of_rate)  # a rate that is given
    (params, _), trace = jax.lax.scan(step, (params, state), batches)
    return scaled(params, 1 / units.params), trace | {"rate": trace["rate"] / of_rate}


def scaled(params, factor):
    return jax.tree.map(lambda w: w * factor, params)


def trained(base, controller, seed, units=Units()):  # noqa: B008
    """The final parameters, and what was seen after each step: the parameters and the rate in units of 1."""
    numbers = Units(*map(np.float32, units)), np.float32(units.of_rate(base))
    return jax.device_get(_trained(*drawn(PROBLEMS[base], seed), *numbers, base=base, controller=controller))


reference = functools.lru_cache(maxsize=64)(trained)


def assert_same(found, expected):
    """To the bit: rates, decisions, parameters."""
    for name in ("rate", "status", "num_probes", "notices"):
        np.testing.assert_array_equal(found[1][name], expected[1][name], name)
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])


def assert_close(found, expected, steps, rtol):
    for name in ("status", "num_probes", "notices"):
        np.testing.assert_array_equal(found[1][name][:steps], expected[1][name][:steps], name)
    np.testing.assert_allclose(found[1]["rate"][:steps], expected[1]["rate"][:steps], rtol)


def exponents(base):
    """Of powers of two about 1e-12 to 1e12; those of which Adam's squares of gradients are still in float32."""
    most = 20 if base == "adam" else 40
    return st.integers(-most, most)


@rules
@few(6)
@hypothesis.given(data=st.data(), seed=SEEDS)
def test_1_a_loss_in_other_units(base, controller, data, seed):
    units = Units(loss=2.0 ** data.draw(exponents(base)))
    assert_same(trained(base, controller, seed, units), reference(base, controller, seed))


@rules
@few(3)
@hypothesis.given(log_unit=st.floats(-5, 5), seed=SEEDS)
def test_1_a_loss_in_any_units(base, controller, log_unit, seed):
    units = Units(loss=10.0**log_unit)
    assert_close(trained(base, controller, seed, units), reference(base, controller, seed), SEARCH, 3e-3)


@rules
@few(6)
@hypothesis.given(zero=st.one_of(st.floats(-3, 3), st.sampled_from(["start", "mean", "end", "highest"])), seed=SEEDS)
def test_2_a_loss_with_another_zero(base, controller, zero, seed):
    """Anywhere, among others where it is 0 at the start, in the middle or at the end, and where it is never above 0."""
    expected = reference(base, controller, seed)
    losses = expected[1]["loss"]
    levels = {"start": losses[0], "mean": losses.mean(), "end": losses[-30:].mean(), "highest": losses.max()}
    found = trained(base, controller, seed, Units(zero=-levels[zero] if zero in levels else zero))
    assert np.mean(found[1]["status"] != expected[1]["status"]) <= 0.02
    np.testing.assert_allclose(found[1]["rate"], expected[1]["rate"], rtol=1e-2)


@rules
@few(6)
@hypothesis.given(exponent=st.integers(-40, 40), seed=SEEDS)
def test_3_a_base_that_proposes_other_steps(base, controller, exponent, seed):
    found = trained(base, controller, seed, Units(step=2.0**exponent))
    assert_same(found, reference(base, controller, seed))


@rules
@few(3)
@hypothesis.given(log_unit=st.floats(-5, 5), seed=SEEDS)
def test_3_a_base_that_proposes_any_steps(base, controller, log_unit, seed):
    found = trained(base, controller, seed, Units(step=10.0**log_unit))
    assert_close(found, reference(base, controller, seed), SEARCH, 3e-3)


@rules
@few(6)
@hypothesis.given(data=st.data(), seed=SEEDS)
def test_4_parameters_in_other_units(base, controller, data, seed):
    """In powers of four, the distance of the rates that are tried at first."""
    units = Units(params=4.0 ** data.draw(st.integers(*(-10, 10) if base == "adam" else (-20, 20))))
    assert_same(trained(base, controller, seed, units), reference(base, controller, seed))


@pytest.mark.parametrize("base", BASES)
@few(6)
@hypothesis.given(exponent=st.floats(-20, 20), seed=SEEDS)
def test_4_parameters_in_any_units(base, exponent, seed):
    """Other rates are tried at first, so the first rate is another one. The search makes up for it."""
    found, expected = trained(base, None, seed, Units(params=2.0**exponent)), reference(base, None, seed)
    assert 1 / 4.1 < found[1]["rate"][0] / expected[1]["rate"][0] < 4.1
    assert found[1]["loss"][-30:].mean() < 2 * expected[1]["loss"][-30:].mean()


# Leaves whose gradient is zero: no eps of 0.
BESIDE = BASES | {"adam": optax.adam(1.0)}
NAMES = {"first": "y", "second": "x"}  # in the other order


@functools.partial(jax.jit, static_argnames=("base", "controller", "renamed"))
def _in_company(params, batches, company, *, base, controller, renamed):
    names = NAMES if renamed else {name: name for name in NAMES}
    tx = gen_optax.gen(optax.masked(BESIDE[base], floating), controller=controller)

    def loss_fn(params, batch):
        return linear_loss({name: params[names[name]] for name in names}, batch)

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn, allow_int=True)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn, batch=batch)
        moves = floating(params)
        params = jax.tree.map(lambda w, u, moves: w + u if moves else w, params, updates, moves)
        return (params, state), seen(state, value)

    params = {names[name]: leaf for name, leaf in params.items()} | company
    (params, _), trace = jax.lax.scan(step, (params, tx.init(params)), batches)
    own = {name: params.pop(names[name]) for name in names}
    return own, trace, params


def floating(params):
    return jax.tree.map(lambda w: jnp.issubdtype(w.dtype, jnp.floating), params)


def in_company(base, controller, seed, company=None, renamed=False):
    """The parameters and what was seen, with other leaves beside them that the loss ignores; and what became of these.

    Renamed, the leaves come in another order.
    """
    settings = {"base": base, "controller": controller, "renamed": renamed}
    return jax.device_get(_in_company(*drawn("linear", seed), company or {}, **settings))


@pytest.mark.parametrize(("base", "controller"), FEW_RULES, ids=str_or_type)
@few(6)
@hypothesis.given(log_scale=st.floats(-12, 12), seed=SEEDS)
def test_4_leaves_that_the_loss_ignores(base, controller, log_scale, seed):
    """A buffer of any scale, larger than all other leaves together, a number, integers, and no entries at all."""
    scale = np.float32(10.0**log_scale)
    buffer = scale * np.random.default_rng(seed).normal(size=1000).astype(np.float32)
    company = {"a": buffer, "g": scale, "m": np.arange(5), "z": {"none": np.zeros((0, 2), np.float32)}}
    found = in_company(base, controller, seed, company)
    assert_same(found, in_company(base, controller, seed))
    jax.tree.map(np.testing.assert_array_equal, found[2], company)


@pytest.mark.parametrize(("base", "controller"), FEW_RULES, ids=str_or_type)
@few(6)
@hypothesis.given(seed=SEEDS)
def test_4_leaves_in_another_order(base, controller, seed):
    assert_same(in_company(base, controller, seed, renamed=True), in_company(base, controller, seed))


@functools.partial(jax.jit, static_argnames="base")
def _scaled_apart(params, scales, batches, base):
    """Each leaf alone can fit the batches, without noise."""
    tx = gen_optax.gen(BASES[base])

    def loss_fn(params, batch):
        params = jax.tree.map(lambda w, scale: w / scale, params, scales)
        prediction = batch["x"] @ (params["first"] + params["second"] + params["third"])
        return jnp.mean((prediction - batch["x"] @ jnp.ones(8)) ** 2) / 2

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn, batch=batch)
        return (optax.apply_updates(params, updates), state), seen(state, value)

    params = jax.tree.map(jnp.multiply, params, scales)
    return jax.lax.scan(step, (params, tx.init(params)), batches)[1]


@pytest.mark.parametrize("base", BASES)
@few(10)
@hypothesis.given(log_scales=st.tuples(*[st.floats(-12, 12)] * 3), seed=SEEDS)
def test_4_leaves_of_different_scales(base, log_scales, seed):
    """Of temperatures beside SI units: those that the loss is most sensitive to set the rate, and training goes on."""
    if base == "adam":
        log_scales = tuple(x / 2 for x in log_scales)
    names = "first", "second", "third"
    scales = {name: np.float32(10.0**x) for name, x in zip(names, log_scales, strict=True)}
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=8).astype(np.float32) for name in names}
    trace = jax.device_get(_scaled_apart(params, scales, drawn("linear", seed)[1], base))
    assert trace["rate"][5] > 0
    assert trace["loss"][-30:].mean() < 0.1 * trace["loss"][0]


@functools.partial(jax.jit, static_argnames=("base", "inside", "frozen"))
def _with_frozen(params, batches, *, base, inside, frozen):
    """Frozen leaves that the loss reads, and GeN inside of the partition, where it does not see them, or outside."""
    tables = {f"frozen {i}": jnp.ones(500) for i in range(frozen)}
    labels = dict.fromkeys(params, "train") | dict.fromkeys(tables, "freeze")
    params |= tables

    def freezing(tx):
        return optax.partition({"train": tx, "freeze": optax.set_to_zero()}, labels)

    tx = freezing(gen_optax.gen(BESIDE[base])) if inside else gen_optax.gen(freezing(BESIDE[base]))

    def loss_fn(params, batch):
        return linear_loss(params, batch) * jnp.mean(jnp.stack([params[name] for name in tables]))

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(params, batch)
        value_fn = gen_optax.unmasked_value_fn(loss_fn, params) if inside else loss_fn
        updates, state = tx.update(grads, state, params, value=value, value_fn=value_fn, batch=batch)
        return (optax.apply_updates(params, updates), state), seen(state, value)

    return jax.lax.scan(step, (params, tx.init(params)), batches)[1]


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize(("base", "frozen"), [("sgd", 1), ("adam", 2)])
@few(3)
@hypothesis.given(seed=SEEDS)
def test_4_frozen_leaves_that_gen_does_not_see(base, frozen, repeats, seed):
    """More numbers than a batch has, and batches that come once or four times in a row."""
    problem = drawn("linear", seed, repeats)
    inside, outside = (
        jax.device_get(_with_frozen(*problem, base=base, inside=x, frozen=frozen)) for x in (True, False)
    )
    assert (outside["num_probes"][-1] < STEPS / 3) == (repeats > 1), "probes wait for a batch that is new"
    for name in ("status", "num_probes", "notices"):
        np.testing.assert_array_equal(inside[name], outside[name], name)
    np.testing.assert_allclose(inside["rate"], outside["rate"], rtol=1e-3)


def step_of(base, controller, loss_fn):
    """One training step: `(carry, batch) -> (carry, seen)`."""
    tx = gen_optax.gen(BASES[base], controller=controller)

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn, batch=batch)
        return (optax.apply_updates(params, updates), state), seen(state, value)

    return tx, step


@functools.cache
def placed(base, controller):
    """The ways to run one and the same training: functions of runs of parameters and batches, stacked."""
    tx, step = step_of(base, controller, LOSSES[PROBLEMS[base]])
    compiled = jax.jit(step)

    def scanned(params, batches):
        return jax.lax.scan(step, (params, tx.init(params)), batches)[1]

    def looped(params, batches, step=compiled, resumes_at=None, steps=40):
        carry, trace = (params, tx.init(params)), []
        for i in range(steps):
            if i == resumes_at:
                carry = jax.tree.map(jnp.asarray, pickle.loads(pickle.dumps(jax.device_get(carry))))
            carry, one = step(carry, jax.tree.map(lambda x, i=i: x[i], batches))
            trace.append(one)
        return jax.tree.map(lambda *x: np.stack(x), *trace)

    def one_by_one(run):
        return lambda *runs: jax.tree.map(lambda *x: np.stack(x), *(run(*run_of(runs, i)) for i in range(3)))

    def run_of(runs, i):
        return jax.tree.map(lambda x: x[i], runs)

    def first(run):
        return lambda *runs: jax.tree.map(lambda x: np.stack([x]), run(*run_of(runs, 0)))

    return {
        "scan": one_by_one(jax.jit(scanned)),
        "vmap": jax.jit(jax.vmap(scanned)),
        "scan over vmap": jax.jit(lambda *runs: over_runs(tx, step, *runs)),
        "loop": one_by_one(looped),
        "resumed": first(functools.partial(looped, resumes_at=23)),
        "eager": first(functools.partial(looped, step=step, steps=10)),
    }


def over_runs(tx, step, params, batches):
    """All runs take a step, then the next one."""
    batches = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batches)
    trace = jax.lax.scan(jax.vmap(step), (params, jax.vmap(tx.init)(params)), batches)[1]
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), trace)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize(("base", "controller"), [("momentum", None), ("adam", PAPER)], ids=str_or_type)
@few(2)
@hypothesis.given(seed=SEEDS)
def test_5_where_and_how_the_steps_run(base, controller, repeats, seed):
    """Three runs; the rates, what was decided, and the fingerprints of the batches, which may come three times."""
    runs = [drawn(PROBLEMS[base], seed + i, repeats) for i in range(3)]
    params, batches = jax.tree.map(lambda *x: jnp.stack(x), *runs)
    batches = jax.tree.map(lambda x: x[:, :40], batches)
    ways = placed(base, controller)
    expected = jax.device_get(ways["scan"](params, batches))
    for name, way in ways.items():
        found = jax.device_get(way(params, batches))
        runs, steps = found["rate"].shape
        assert (runs, steps) == {"resumed": (1, 40), "eager": (1, 10)}.get(name, (3, 40))
        for key in ("status", "num_probes", "notices", "batches"):
            np.testing.assert_array_equal(found[key], expected[key][:runs, :steps], f"{name}: {key}")
        for key in ("rate", "loss"):
            np.testing.assert_allclose(found[key], expected[key][:runs, :steps], rtol=2e-3, err_msg=f"{name}: {key}")
    if controller is None:
        assert len(np.unique(expected["batches"][0, -1])) == 16 // repeats + (repeats > 1)


class Landscape(NamedTuple):
    """Losses without noise: a parabola, Rosenbrock's valley, a quartic bowl; and a wall behind which they are NaN."""

    parabola: Any = 0.0
    valley: Any = 0.0
    quartic: Any = 0.0
    wall: Any = np.inf
    start: Any = 2.9  # from within a box of this size

    def value_fn(self, w):
        x, y = w[::2], w[1::2]
        loss = self.parabola * jnp.sum(jnp.array([1.0, 10.0, 100.0, 3.0]) * (w - 2.5) ** 2)
        loss += self.valley * jnp.sum((1 - x) ** 2 + 100 * (y - x**2) ** 2) + self.quartic * jnp.sum(w**4)
        return jnp.where(jnp.max(jnp.abs(w)) > self.wall, jnp.nan, loss)


LANDSCAPES = {
    "cliff": Landscape(parabola=1.0, wall=3.0),
    "valley": Landscape(valley=1.0, start=1.0),
    "wide valley": Landscape(valley=1.0),
    "valley with a wall": Landscape(valley=1.0, wall=3.0),
    "quartic": Landscape(quartic=1.0, start=30.0),
    "steep quartic": Landscape(quartic=1e4, start=2.0),
}
RUNS = 32


@functools.partial(jax.jit, static_argnames=("base", "given"))
def _explored(starts, land, *, base, given):
    """300 steps from each start: the parameters after them, and the losses before each."""
    tx = optax.chain(BESIDE[base], gen_optax.scale_by_gen())

    def step(carry, _):
        w, state = carry
        value, grad = jax.value_and_grad(land.value_fn)(w)
        extra = {name: x for name, x in (("value", value), ("grad", grad)) if name in given}
        updates, state = tx.update(grad, state, w, value_fn=land.value_fn, **extra)
        w = optax.apply_updates(w, updates)
        return (w, state), (value, jnp.all(jnp.isfinite(w)))

    def run(w):
        return jax.lax.scan(step, (w, tx.init(w)), length=300)[1]

    return jax.vmap(run)(starts)


GIVEN = {base: [(), ("value", "grad")] for base in BESIDE} | {"sgd": [(), ("grad",), ("value",), ("value", "grad")]}


@pytest.mark.parametrize("base", BESIDE)
@pytest.mark.parametrize("name", LANDSCAPES)
@few(3)
@hypothesis.given(seed=SEEDS)
def test_6_value_and_grad_only_save_work(base, name, seed):
    """No run of 32 is lost, whatever was given, and what is reached is alike."""
    land = Landscape(*map(np.float32, LANDSCAPES[name]))
    starts = np.random.default_rng(seed).uniform(-land.start, land.start, size=(RUNS, 4)).astype(np.float32)
    reached = {}
    for given in GIVEN[base]:
        losses, finite = jax.device_get(_explored(starts, land, base=base, given=given))
        lost = np.flatnonzero(~finite.all(1))
        assert not lost.size, f"given {given}: {lost.size} runs of {RUNS} are lost, the first from {starts[lost[0]]}"
        reached[given] = np.median(np.nanmin(losses[:, -20:], axis=1))
    for given, loss in reached.items():
        assert loss <= 3 * reached["value", "grad"] + 1e-4 * np.median(losses[:, 0]), given


FEW = st.floats(-5, 5, width=32)
PAST = 12  # probes before the one that is looked at
AGES = st.sampled_from([0, 3, SEARCH - 1, SEARCH, SEARCH + 5, 5000])
CONTROLLER = gen_optax.balance()
UNREADABLE = ProbeStatus.BELOW_ROUNDING, ProbeStatus.POOR_FIT


@functools.partial(jax.jit, static_argnames="controller")
def _remembering(controller, age, losses, gains, between, out_of_turn):
    """The state of a controller that has seen such losses."""
    rate, state = controller.init(jnp.float32)

    def probe(carry, past):
        loss, gain, rise, out_of_turn = past
        fields = {"value": loss, "end_value": loss - gain, "value_before": loss - rise, "is_complete": jnp.array(True)}
        fields |= {"is_path": jnp.array(True), "out_of_turn": out_of_turn}
        measured = measurement(1.0, 2.0)._replace(**fields)
        rate, state, _ = observed(controller, measured, *carry)
        return (rate, state), None

    (_, state), _ = jax.lax.scan(probe, (rate + 0.1, state._replace(age=age)), (losses, gains, between, out_of_turn))
    return state._replace(age=age)


def remembering(seed, age):
    """Losses that fall, stay or rise, and gains that other batches confirm, or do not."""
    rng = np.random.default_rng(seed)
    losses = rng.normal() + rng.uniform(0, 0.3) * rng.normal(size=PAST) + rng.normal() * np.linspace(-1, 1, PAST) / 3
    gains = rng.uniform(-0.2, 0.5) + 0.1 * rng.normal(size=PAST)
    between = rng.uniform(-0.2, 0.5) + 0.1 * rng.normal(size=PAST)
    past = [x.astype(np.float32) for x in (losses, gains, between)]
    return _remembering(CONTROLLER, np.int32(age), *past, rng.uniform(size=PAST) < 0.2)


MEASURED = {
    "slope": FEW,
    "curvature": FEW,
    "noise": st.sampled_from([0.0, 0.01, 1.0]),
    "value": st.sampled_from([1.0, -1.0, 0.01]),
    "end_value": FEW,
    "value_before": st.one_of(FEW, st.just(np.nan)),
    "out_of_turn": st.booleans(),
    "jumped": st.booleans(),
}
cautious = hypothesis.settings(max_examples=200)
more = st.floats(0, 10, width=32)


def as_measured(slope, curvature, value_before=np.nan, **fields):
    measured = measurement(slope, curvature, is_path=True, **fields)
    return measured._replace(value_before=jnp.float32(value_before), is_complete=jnp.array(True))


def next_rate(seed, age, **fields):
    rate, _, status = observed(CONTROLLER, as_measured(**fields), 0.1, remembering(seed, age))
    return float(rate), int(status)


@hypothesis.given(seed=SEEDS, age=AGES, fewer=more, measured=st.fixed_dictionaries(MEASURED))
@cautious
def test_7_a_smaller_slope_never_raises_the_next_rate(seed, age, fewer, measured):
    """But a slope within its noise says nothing, and the rate stays."""
    before, _ = next_rate(seed, age, **measured)
    after, status = next_rate(seed, age, **measured | {"slope": measured["slope"] - fewer})
    hypothesis.assume(status not in UNREADABLE)
    assert after <= before * (1 + 1e-6)


@hypothesis.given(seed=SEEDS, age=AGES, added=more, measured=st.fixed_dictionaries(MEASURED))
@cautious
def test_7_a_larger_curvature_never_raises_the_next_rate(seed, age, added, measured):
    """On the way down. The search makes nothing of curvature that is clearly negative, so the rate stays there."""
    hypothesis.assume(measured["slope"] > 0)
    hypothesis.assume(age >= SEARCH or measured["curvature"] >= -measured["noise"])
    before, _ = next_rate(seed, age, **measured)
    after, status = next_rate(seed, age, **measured | {"curvature": measured["curvature"] + added})
    assert status not in UNREADABLE or measured["slope"] <= measured["noise"]
    assert after <= before * (1 + 1e-6)


@hypothesis.given(seed=SEEDS, age=AGES, measured=st.fixed_dictionaries(MEASURED))
@cautious
def test_7_a_worse_status_never_raises_the_next_rate(seed, age, measured):
    """From steps that helped by way of steps uphill and a jump to a loss that is not finite."""
    slope = abs(measured["slope"]) + 1.1
    measured |= {"slope": slope, "curvature": abs(measured["curvature"]) + 1.1, "jumped": False}
    ascent, jump = measured | {"slope": -slope}, {"jumped": True}
    lost = [ascent | {"end_value": x} for x in (np.inf, np.nan)]
    found = [next_rate(seed, age, **x) for x in (measured, ascent, ascent | jump, *lost)]
    names = ["FALSE_ALARM"] * 2 if measured["out_of_turn"] else ["ACCEPTED", "ASCENT"]
    assert [ProbeStatus(status).name for _, status in found] == [*names, "JUMP", "OVERSHOOT", "OVERSHOOT"]
    rates = np.array([rate for rate, _ in found])
    assert np.all(rates[1:] <= rates[:-1] * (1 + 1e-6))
    assert next_rate(seed, age, **measured | jump)[0] <= rates[0] * (1 + 1e-6)


@hypothesis.given(slope=st.floats(0.125, 5, width=32), curvature=st.floats(0.125, 5, width=32), added=more)
@cautious
@pytest.mark.parametrize("controller", [PAPER, gen_optax.algorithm_1(clamp=2.0)], ids=["paper", "authors"])
def test_7_a_larger_curvature_or_a_smaller_slope_lowers_the_rate_of_the_paper(controller, slope, curvature, added):
    """Where the fit is accepted: elsewhere the paper leaves the rate as it is."""
    before, _, status = observed(controller, measurement(slope, curvature))
    assert status == ProbeStatus.ACCEPTED
    assert observed(controller, measurement(slope, curvature + added))[0] <= before
    assert observed(controller, measurement(slope / (1 + added), curvature))[0] <= before
    assert observed(controller, measurement(slope, curvature, end_value=np.inf))[0] <= before
