"""What GeN costs, by count: forward passes traced and executed, XLA's FLOPs, XLA's bytes."""

import pathlib

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KINDS, PROBES, gen_state

import gen_optax

README = pathlib.Path(__file__).parents[1] / "README.md"
GIVEN = gen_optax.algorithm_1(init_learning_rate=0.1)  # without a search for the first rate
INDEPENDENT = {
    "vmap": gen_optax.finite_difference(independent=True),
    "map": gen_optax.finite_difference(batching="map", independent=True),
    "exact": gen_optax.exact(independent=True),
    "retrospective": gen_optax.retrospective(),
}

# probe: forward passes at a due step, with value and grad at hand, and without.
COSTS = {
    "three points": (gen_optax.finite_difference(), 2, 3),
    "map": (gen_optax.finite_difference(batching="map"), 2, 3),
    "without the centre": (gen_optax.finite_difference((-1.0, 0.5, 1.0)), 3, 3),
    "five points": (gen_optax.finite_difference((-1.0, -0.5, 0.0, 0.5, 1.0)), 4, 5),
    "free slope": (gen_optax.finite_difference(free_slope=True), 1, None),
    "checked free slope": (gen_optax.finite_difference((0.5, 1.0), free_slope=True), 2, None),
    "retrospective": (gen_optax.retrospective(), 2, 3),
}


def executed(tx, steps, given):
    """How often the loss runs in each step, counted by a callback that is not part of the library."""
    calls = []

    def loss_fn(w):
        jax.debug.callback(lambda _: calls.append(1), w[0])  # with an operand: once for each point under vmap
        return jnp.sum((w - 1.0) ** 2)

    def plain(w):
        return jnp.sum((w - 1.0) ** 2)

    @jax.jit
    def step(w, state):
        value, grad = jax.value_and_grad(plain)(w)
        extra = {"value": value, "grad": grad} if given else {}
        updates, state = tx.update(grad, state, w, value_fn=loss_fn, **extra)
        return optax.apply_updates(w, updates), state

    w = jnp.zeros(3)
    state = tx.init(w)
    counts = []
    for _ in range(steps):
        w, state = jax.block_until_ready(step(w, state))
        jax.effects_barrier()
        counts.append(len(calls))
        calls.clear()
    return counts, state


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("given", [True, False])
def test_forward_passes_that_run(name, given):
    """None at a step that is not due; one, two, n at one that is.

    Without `value` it is evaluated at every fourth call, to hear an alarm.
    """
    probe, with_value, without = COSTS[name]
    expected = with_value if given else without
    if expected is None:
        pytest.skip("needs grad, or costs a derivative without it")
    tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(controller=GIVEN, probe=probe, every=3))
    counts, _ = executed(tx, 7, given)
    heard = 1 if isinstance(probe.direction, gen_optax.Path) and not given else 0
    assert counts == [0, 0, expected, heard, 0, expected, 0]


def test_the_readme_says_what_it_costs():
    def copies(**options):
        params = jnp.zeros(100_000)
        trees = [tx.init(params) for tx in (gen_optax.gen_sgd(**options), optax.sgd(1.0))]
        own, base = (sum(x.size for x in jax.tree.leaves(tree)) for tree in trees)
        return round((own - base) / 100_000, 1)

    words, rule = {1: "one", 2: "two", 3: "three"}, gen_optax.balance()
    probe = words[COSTS["retrospective"][1]]
    sentences = (
        f"GeN costs up to {rule.num_start_rates} forward passes at the first step, {probe} at each of the next "
        f"{rule.search_probes}, and {probe} at every {rule.every}th from there. Its state is "
        f"{words[copies(num_steps=10)]} copy of the parameters, or {words[copies()]} with an open end;"
    )
    assert sentences in " ".join(README.read_text().split())


def test_an_overshoot_costs_one_more_probe_and_then_none():
    """Probes at every call while the rate falls, and the regular rhythm after it."""

    def cliff(w):
        return jnp.where(jnp.abs(w) < 2, (w - 1.0) ** 2, jnp.nan)

    tx = gen_optax.gen_sgd(controller=gen_optax.algorithm_1(init_learning_rate=500.0), every=4)
    step = jax.jit(lambda w, s: tx.update(2 * (w - 1.0), s, w, value=cliff(w), value_fn=cliff))
    w = jnp.zeros(())
    state = tx.init(w)
    state = (*state[:-1], state[-1]._replace(count=jnp.int32(3)))
    probes = []
    for _ in range(8):
        updates, state = step(w, state)
        w = w + updates
        probes.append(int(gen_state(state).info.num_probes))
    # 500, 50, 5 overshoot; 0.5 is good. Calls 4, 5, 6, 7 probe, then 8, which is due, then 12.
    assert probes == [1, 2, 3, 4, 5, 5, 5, 5]


def count_in_jaxpr(jaxpr, name, inside_cond=True):
    """Equations of a primitive in a jaxpr and, if told so, in the branches of its conds."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == name
        if equation.primitive.name == "cond" and not inside_cond:
            continue
        for sub in jex.core.jaxprs_in_params(equation.params):
            total += count_in_jaxpr(sub, name, inside_cond)
    return total


WIDTH = 64
X = np.random.default_rng(0).normal(size=(16, WIDTH)).astype(np.float32)


def network_loss(w):
    """Two matrix products that dominate everything else."""
    return jnp.mean((jnp.tanh(X @ w["a"]) @ w["b"] - 1.0) ** 2)


PARAMS = {"a": jnp.full((WIDTH, WIDTH), 0.01), "b": jnp.full((WIDTH, WIDTH), 0.01)}
NUMBER = 2 * WIDTH * WIDTH


def step_fn(tx, given=True):
    def step(w, state):
        loss, grad = jax.value_and_grad(network_loss)(w)
        extra = {"value": loss, "grad": grad} if given else {}
        extra["value_fn"] = network_loss
        updates, state = optax.with_extra_args_support(tx).update(grad, state, w, **extra)
        return optax.apply_updates(w, updates), state

    return step


def traced(tx, name="dot_general", inside_cond=True, **arguments):
    jaxpr = jax.make_jaxpr(step_fn(tx, **arguments))(PARAMS, tx.init(PARAMS)).jaxpr
    return count_in_jaxpr(jaxpr, name, inside_cond)


FORWARD = 2  # matrix products of one evaluation of the loss
GRADIENT = 5  # ... and of its gradient: these, and one for each of three cotangents
# Evaluations of the loss that the traced program holds: vmap has one of its own; jvp of jvp has products of tangents.
STANDS = {"vmap": 2, "map": 1, "exact": None, "retrospective": 1}


@pytest.mark.parametrize(
    ("name", "given"),
    [("vmap", True), ("map", False), ("exact", True), ("retrospective", True), ("retrospective", False)],
)
def test_traced_evaluations(name, given):
    """Outside of lax.cond the step holds the matrix products of the gradient and not one more.

    Inside there is the loss once: the loop over points serves the first rate and every probe.
    """
    gradient = traced(optax.sgd(1.0))
    assert gradient in (2 * FORWARD, GRADIENT)
    tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(probe=INDEPENDENT[name], every=3))
    assert traced(tx, inside_cond=False, given=given) == gradient
    inside = traced(tx, given=given) - gradient
    assert inside == FORWARD * STANDS[name] if STANDS[name] else inside > FORWARD


@pytest.mark.parametrize("base", [optax.sgd(1.0, momentum=0.9), optax.adamw(1.0)], ids=["momentum", "adamw"])
def test_the_default_holds_the_loss_once(base):
    """However it is built: outside of the gradient a marker within the loss stands once in the program."""

    def marked(w):
        return jnp.sum(jax.lax.erf_inv(0.1 * jnp.tanh(w)) ** 2)

    def step(w, state):
        value, grads = marked(w), w
        updates, state = tx.update(grads, state, w, value=value, value_fn=marked)
        return optax.apply_updates(w, updates), state

    for options in ({}, {"num_steps": 100}, {"every": 1}):
        tx = gen_optax.gen(base, **options)
        w = jnp.ones(3)
        jaxpr = jax.make_jaxpr(step)(w, tx.init(w)).jaxpr
        assert count_in_jaxpr(jaxpr, "erf_inv") == 1 + 1
        assert count_in_jaxpr(jaxpr, "erf_inv", inside_cond=False) == 1


@pytest.mark.parametrize("name", KINDS)
def test_a_known_rate_traces_no_search(name):
    """With Algorithm 1: the probe and nothing else."""
    tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(controller=GIVEN, probe=KINDS[name], every=3))
    inside = traced(tx) - traced(optax.sgd(1.0))
    assert traced(tx, inside_cond=False) == traced(optax.sgd(1.0))
    assert inside == FORWARD if name != "exact" else inside > FORWARD


def compiled(tx, count):
    """The compiled step of one call, whose number is a constant: XLA then knows whether a probe is due."""
    *base, state = tx.init(PARAMS)

    def step(w, probe, learning_rate):
        here = state._replace(count=jnp.int32(count), probe=probe, learning_rate=learning_rate)
        return step_fn(tx)(w, (*base, here))

    return jax.jit(step).lower(PARAMS, state.probe, state.learning_rate).compile()


def flops(program):
    return program.cost_analysis()["flops"]


@pytest.mark.parametrize("name", COSTS)
def test_flops(name):
    """XLA's own count: nothing at a step that is not due, n forward passes at one that is.

    A probe that looks back cannot know the loss beforehand: a NaN makes any step due. So XLA keeps the branch.
    """
    probe, forwards, _ = COSTS[name]
    forward = flops(jax.jit(network_loss).lower(PARAMS).compile())
    tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(controller=GIVEN, probe=probe, every=4))
    plain = flops(jax.jit(step_fn(optax.sgd(1.0))).lower(PARAMS, optax.sgd(1.0).init(PARAMS)).compile())
    small = 8 * NUMBER  # element-wise passes over the parameters: moving and scaling them
    assert forward > 10 * NUMBER
    idle, due = flops(compiled(tx, count=1)), flops(compiled(tx, count=3))
    if name == "retrospective":
        assert idle - plain <= forwards * forward + 2 * small  # the branch that is not taken is counted as well
    else:
        assert 0 <= idle - plain <= small
    if probe.batching == "map":  # XLA counts the body of a loop once
        forwards = 1
    assert abs(due - plain - forwards * forward) <= (forwards + 1) * small


def test_exact_costs_about_three_forward_passes():
    forward = flops(jax.jit(network_loss).lower(PARAMS).compile())
    tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(controller=GIVEN, probe=gen_optax.exact(), every=4))
    extra = flops(compiled(tx, count=3)) - flops(compiled(tx, count=1))
    assert 2 * forward < extra < 5 * forward


def temporaries(probe, **options):
    """Bytes of scratch memory that a due step takes beyond those of the same step without a probe."""
    tx = gen_optax.scale_by_gen(controller=GIVEN, probe=probe, **options)
    state = tx.init(PARAMS)

    def update(u, w, value):
        return tx.update(u, state, w, value=value, value_fn=network_loss)

    program = jax.jit(update).lower(PARAMS, PARAMS, jnp.float32(0)).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("points", [3, 7])
def test_map_holds_one_copy_of_the_parameters_and_vmap_one_each(points):
    candidates = tuple(np.linspace(-1, 1, points))
    copy = 4 * NUMBER
    activations = 2 * 4 * 16 * WIDTH + 4096
    one = temporaries(gen_optax.finite_difference(candidates, "map"), every=1)
    many = temporaries(gen_optax.finite_difference(candidates, "vmap"), every=1)
    assert one <= copy + activations
    assert many >= (points - 1) * copy


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("controller", [GIVEN, gen_optax.balance()], ids=["algorithm_1", "balance"])
def test_the_state_is_a_few_scalars(name, controller):
    """Bytes of it, whatever the size of the model; a copy of the parameters along the path, one for their average.

    And with `balance` two sketches of the parameters, 256 numbers for each array at most.
    """
    probe = PROBES[name] if controller == GIVEN or PROBES[name].direction.independent else INDEPENDENT["exact"]
    is_path = isinstance(probe.direction, gen_optax.Path)
    leaves = jax.tree.leaves(gen_optax.scale_by_gen(controller=controller, probe=probe).init(PARAMS))
    small = [x for x in leaves if x.shape == ()]
    assert sum(x.nbytes for x in small) <= (56 if controller == GIVEN else 84) + 40 * is_path
    large = [(x.shape, x.dtype) for x in leaves if x.size > 64]
    params = jax.tree.leaves(PARAMS)
    kept = [(x.shape, x.dtype) for x in (is_path + (controller != GIVEN)) * params]
    sketches = [((2, len(params), 256), jnp.float32)] * (controller != GIVEN)
    assert large == kept + sketches


def test_what_the_probe_remembers_is_overwritten_in_place():
    """With donated buffers XLA copies each array once, in the branch that remembers it, and at no other call."""
    tx = gen_optax.gen_adamw()
    program = jax.jit(step_fn(tx), donate_argnums=(0, 1)).lower(PARAMS, tx.init(PARAMS)).compile()
    branches, always = program.as_text().split("ENTRY ")
    copies = [
        [line for line in part.splitlines() if f"f32[{WIDTH},{WIDTH}]" in line and " copy(" in line]
        for part in (branches, always)
    ]
    assert len(copies[0]) <= len(jax.tree.leaves(PARAMS))
    assert not copies[1]


@pytest.mark.parametrize(("name", "given"), [("retrospective", True), ("retrospective", False), ("vmap", True)])
def test_the_cold_start_ends(name, given):
    """At most 23 forward passes in the first call; then a probe a call; after the search the usual rhythm.

    Probes 1, 2, 4, 8, ... look whether `value` is the loss at the parameters; by vmap all do.
    """
    tx = optax.chain(optax.sgd(1.0), gen_optax.scale_by_gen(probe=INDEPENDENT[name], every=10))
    counts, state = executed(tx, 80, given)
    assert 10 <= counts[0] <= 23
    probes = [call for call in range(1, 80) if call < 51 or (call + 1) % 10 == 0]
    if given and name != "vmap":
        passes = {call: 2 + (number & (number - 1) == 0) for number, call in enumerate(probes, start=1)}
    else:
        passes = dict.fromkeys(probes, 3)
    heard = 0 if given or name == "vmap" else 1
    expected = [passes.get(call, heard * ((call + 1) % 4 == 0)) for call in range(1, 80)]
    assert counts[1:38] == expected[:37]
    assert max(counts[1:]) <= 3  # fewer where nothing is seen
    assert {call for call in range(51, 80) if counts[call] > heard} <= {
        call for call in range(51, 80) if (call + 1) % 10 == 0
    }
    assert gen_state(state).info.num_probes > 45


@pytest.mark.parametrize("name", PROBES)
def test_no_host_callback_and_no_python_state(name):
    """Pure: the step is a jaxpr without effects."""
    probe = PROBES[name]
    tx = optax.chain(
        optax.adam(1.0), gen_optax.scale_by_gen(probe=probe, controller=None if probe.direction.independent else GIVEN)
    )
    jaxpr = jax.make_jaxpr(step_fn(tx))(PARAMS, tx.init(PARAMS))
    assert not jaxpr.effects
    assert "callback" not in str(jaxpr)


def test_models_side_by_side_search_once():
    """Under vmap a cond runs both branches; the loop of the search must not turn where no rate is searched for."""
    calls = []

    def loss_fn(w):
        jax.debug.callback(lambda _: calls.append(1), w[0])
        return jnp.sum((w - 1.0) ** 2)

    tx = gen_optax.scale_by_gen(probe=INDEPENDENT["exact"], every=10)
    models = jnp.zeros((2, 3))

    @jax.jit
    @jax.vmap
    def step(w, state):
        value, grad = jnp.sum((w - 1.0) ** 2), 2 * (w - 1.0)
        return tx.update(-grad, state, w, value=value, value_fn=loss_fn)[1]

    state, counts = jax.vmap(tx.init)(models), []
    for _ in range(3):
        state = jax.block_until_ready(step(models, state))
        jax.effects_barrier()
        counts.append(len(calls))
        calls.clear()
    assert counts[0] >= 2 * 18
    assert max(counts[1:]) <= counts[0] - 2 * 17  # what the probe itself evaluates
