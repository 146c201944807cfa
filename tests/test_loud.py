"""At the edge of the interface nothing is dropped, broadcast or measured away in silence."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import KINDS, gen_state, greedy, network, network_loss, settings_of

import gen_optax
import gen_optax.nnx
from gen_optax import _settings

FREE = {"probe": gen_optax.finite_difference(free_slope=True)} | greedy(0.1)
W = jnp.zeros(2)


def bowl(w):
    return jnp.sum((w - 1.0) ** 2)


# --- value_fn --------------------------------------------------------------------------------------------------------


def test_a_loss_with_kwargs_gets_all_that_is_not_for_gen():
    """What is named goes where it is named, and `value` too where it is."""
    seen = []

    def value_fn(w, scale, *, value, **rest):
        seen.append((scale, value, rest))
        return scale * bowl(w)

    tx = gen_optax.scale_by_gen(probe=gen_optax.exact(), **greedy(0.1))
    given = {"value": 2.0, "grad": W, "scale": 3.0, "batch": 4.0, "key": None}
    _, state = tx.update(jnp.ones(2), tx.init(W), W, value_fn=value_fn, **given)
    assert seen[0] == (3.0, 2.0, {"batch": 4.0, "key": None})
    assert state.info.value == 6

    _, state = tx.update(jnp.ones(2), tx.init(W), W, obj_fn=lambda w, **k: k["scale"] * bowl(w), loss=2.0, scale=3.0)
    assert state.info.value == 6


@pytest.mark.parametrize("wrong", [3.0, jnp.ones(()), "bowl", W], ids=["number", "array", "string", "parameters"])
@pytest.mark.parametrize("name", ["value_fn", "obj_fn"])
def test_a_loss_that_is_no_function(name, wrong):
    tx = gen_optax.gen_sgd()
    with pytest.raises(TypeError, match=r"value_fn must be a function of the parameters.*got a \w+\. The loss itself"):
        tx.update(W, tx.init(W), W, **{name: wrong})


class Net(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        self.activation = jnp.tanh

    def __call__(self, x):
        return self.activation(self.linear(x))


def whole(model, x):
    return jnp.mean(model(x) ** 2)


def part(model, x):
    return jnp.mean(model.linear(x) ** 2)


def attribute(model, x):
    return jnp.mean(model.activation(x) ** 2)


@pytest.mark.parametrize("loss_fn", [whole, part, attribute])
def test_a_loss_over_an_nnx_model_says_how_to_make_one_over_its_state(loss_fn):
    model, x = Net(), jnp.ones((2, 3))
    optimizer = nnx.Optimizer(model, gen_optax.gen_adam(), wrt=nnx.Param)
    grads = nnx.grad(whole)(model, x)
    with pytest.raises((TypeError, AttributeError), match="State") as caught:
        optimizer.update(model, grads, value_fn=loss_fn, x=x)
    assert "value_fn=gen_optax.nnx.make_value_fn(loss_fn, model)" in "\n".join(caught.value.__notes__)
    optimizer.update(model, grads, value_fn=gen_optax.nnx.make_value_fn(loss_fn, model), x=x)


def test_other_errors_in_an_nnx_loss_are_left_as_they_are():
    model, x = Net(), jnp.ones((2, 4))
    optimizer = nnx.Optimizer(model, gen_optax.gen_adam(), wrt=nnx.Param)
    value_fn = gen_optax.nnx.make_value_fn(whole, model)
    with pytest.raises(TypeError, match="dot_general") as caught:
        optimizer.update(model, nnx.state(model, nnx.Param), value_fn=value_fn, x=x)
    assert not any("make_value_fn" in note for note in getattr(caught.value, "__notes__", []))


def test_what_is_bound_to_an_nnx_loss_stays_bound():
    """Where `**kwargs` lets all arguments of update through, one of the same name among them."""
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))

    def loss_fn(model, **batch):
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)

    x, y = jnp.ones((2, 1)), jnp.zeros((2, 1))
    value_fn = gen_optax.nnx.make_value_fn(loss_fn, model, x=x)
    tx = gen_optax.scale_by_gen(probe=gen_optax.exact(), **greedy(0.1))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    _, state = tx.update(params, tx.init(params), params, value_fn=value_fn, x=5 * x, y=y)
    np.testing.assert_allclose(state.info.value, loss_fn(model, x=x, y=y), rtol=1e-6)


# --- shapes ----------------------------------------------------------------------------------------------------------


def per_example(loss_fn, params, batch):
    return jax.vmap(lambda x, y: jax.grad(loss_fn)(params, x[None], y[None]))(batch["x"], batch["y"])


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_examples_are_not_one_gradient(name):
    params, batch = network()
    tx = gen_optax.scale_by_gen(**settings_of(name, 0.1))
    examples = per_example(network_loss, params, batch)
    grads = jax.grad(network_loss)(params, **batch)
    update = functools.partial(tx.update, value_fn=network_loss, **batch)
    message = (
        r"{} must have the shapes of params, got \(32, 16\) for \(16,\) at params\['layer0'\]\['b'\]\. "
        r"The first axis looks like 32 per-example gradients: average over it first, .*jnp\.mean\(g, axis=0\)"
    )
    with pytest.raises(ValueError, match=message.format("grad")):
        update(grads, tx.init(params), params, grad=examples)
    with pytest.raises(ValueError, match=message.format("updates")):
        update(examples, tx.init(params), params, grad=grads)
    mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), examples)
    update(mean, tx.init(params), params, grad=mean)


def test_gen_does_not_hand_gradients_of_examples_on():
    """A base that takes one gradient per example turns them into one step; the slope is then measured."""
    params, batch = network()
    base = optax.stateless(lambda examples, _: jax.tree.map(lambda g: -jnp.mean(g, axis=0), examples))
    tx = gen_optax.gen(base, probe=gen_optax.exact(), **greedy(0.1))
    examples, value = per_example(network_loss, params, batch), network_loss(params, **batch)
    update = functools.partial(tx.update, value=value, value_fn=network_loss, **batch)
    updates, state = update(examples, tx.init(params), params)
    _, right, _ = gen_optax.directional_derivatives(
        lambda w: network_loss(w, **batch), params, jax.tree.map(lambda u: u / state[1].learning_rate, updates)
    )
    np.testing.assert_allclose(gen_state(state).info.slope, right, rtol=1e-4)
    tx = gen_optax.gen(base, **FREE)
    with pytest.raises(ValueError, match="needs grad="):
        tx.update(examples, tx.init(params), params, value=value, value_fn=network_loss, **batch)


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        ({"a": jnp.ones(2)}, r"which has 2 leaves\. It has 1, none at params\['b'\]\."),
        ({"a": jnp.ones(2), "b": jnp.ones(()), "c": 1.0}, r"It has 3, one at params\['c'\], where params has none"),
        ({"a": jnp.ones(2), "b": jnp.ones(2)}, r"got \(2,\) for \(\) at params\['b'\]\. The first axis"),
        ({"a": jnp.ones(()), "b": jnp.ones(())}, r"got \(\) for \(2,\) at params\['a'\]\.$"),
        ({"a": jnp.ones((2, 1)), "b": jnp.ones(())}, r"got \(2, 1\) for \(2,\) at params\['a'\]\.$"),
    ],
    ids=["a leaf less", "a leaf more", "an axis more", "an axis less", "a column"],
)
def test_trees_that_do_not_fit(grad, message):
    params = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    tx = gen_optax.scale_by_gen(**FREE)
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params), params, value_fn=lambda w: bowl(w["a"]), grad=grad)


def test_integers_masks_none_and_other_containers_fit():
    """Float0 gradients, absent leaves, the whole gradient where `optax.masked` masks the parameters, nnx variables."""
    params = {"a": jnp.zeros(2), "n": jnp.arange(3), "none": None}
    tx = gen_optax.scale_by_gen(**FREE)
    grads = jax.grad(lambda w: bowl(w["a"]), allow_int=True)(params)
    assert grads["n"].dtype == jax.dtypes.float0
    _, state = tx.update(grads, tx.init(params), params, value_fn=lambda w: bowl(w["a"]), grad=grads)
    assert state.info.slope == -8

    params = {"a": jnp.zeros(2), "frozen": jnp.zeros(5)}

    def loss_fn(w):
        return bowl(w["a"]) + bowl(w["frozen"])

    grads = jax.grad(loss_fn)(params)
    masked = optax.masked(tx, {"a": True, "frozen": False})
    value_fn = gen_optax.unmasked_value_fn(loss_fn, params)
    _, state = masked.update(grads, masked.init(params), params, value_fn=value_fn, grad=grads)
    assert gen_state(state).info.slope == -8

    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    variables = nnx.state(model, nnx.Param)
    pure = nnx.as_pure(variables)
    _, state = tx.update(pure, tx.init(pure), pure, grad=variables, value_fn=lambda w: jnp.sum(w["kernel"] ** 2))
    np.testing.assert_allclose(-state.info.slope, optax.tree.norm(pure, squared=True), rtol=1e-5)


# --- notices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [None, 100])
@pytest.mark.parametrize("form", ["optax", "nnx"])
def test_the_average_warns_of_a_base_without_its_sign(form, num_steps):
    """Where metrics are read inside of jit only, nothing else would."""
    tx = gen_optax.gen(optax.scale_by_adam(), num_steps=num_steps)
    if form == "nnx":
        model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        value_fn = gen_optax.nnx.make_value_fn(lambda model: jnp.mean(model(jnp.ones((1, 2))) ** 2), model)
        params = nnx.state(model, nnx.Param)
        optimizer.update(model, nnx.grad(value_fn)(params), value_fn=value_fn)
        state, params = optimizer, nnx.state(model, nnx.Param)
    else:
        _, state = jax.jit(functools.partial(tx.update, value_fn=bowl))(jax.grad(bowl)(W), tx.init(W), W)
        params = W
    with pytest.warns(UserWarning, match=r"uphill.*optax\.scale\(-1\.0\)") as caught:
        gen_optax.averaged_params(state, params)
    assert [w.filename for w in caught] == [__file__]
    if form == "optax":
        jax.jit(gen_optax.averaged_params)(state, params)
        stacked = jax.tree.map(lambda x: jnp.stack([x, x]), (state, params))
        jax.vmap(gen_optax.averaged_params)(*stacked)


def first_notices(base, loss_fn, sign=1):
    """Those of the first call, where the gradient handed over is `sign` times that of the loss."""
    params, batch = network()
    tx = gen_optax.gen(base)
    loss = functools.partial(loss_fn, **batch)

    @jax.jit
    def step(params):
        value, grads = jax.value_and_grad(loss)(params)
        grads = jax.tree.map(lambda g: sign * g, grads)
        return tx.update(grads, tx.init(params), params, value=value, value_fn=loss)[1]

    return gen_optax.Notice(int(gen_state(step(params)).info.notices))


BASES = {"sgd": optax.sgd(1.0, momentum=0.9), "adam": optax.adam(1.0)}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("unit", [1.0, 1e3])
def test_a_reward_in_place_of_a_loss(base, unit):
    """At the first call, before it has destroyed the model."""
    notices = first_notices(BASES[base], lambda p, x, y: -unit * network_loss(p, x, y), sign=-1)
    assert notices == gen_optax.Notice.GRADIENT_DIFFERS
    assert not first_notices(BASES[base], lambda p, x, y: unit * network_loss(p, x, y))


def test_a_parabola_that_rises_at_once_is_no_reward():
    """Whatever the fall that lies between two rates."""
    tx = gen_optax.gen(optax.sgd(1.0))
    rounding = 8 * jnp.finfo(jnp.float32).eps

    def notices(slope, fall):
        def loss_fn(w):  # falls by so many roundings at most
            return 1 + rounding * jnp.sum(-slope * w + slope**2 * w**2 / (4 * fall))

        w = jnp.zeros(1)
        value, grad = jax.value_and_grad(loss_fn)(w)
        state = tx.update(grad, tx.init(w), w, value=value, value_fn=loss_fn)[1]
        return gen_state(state).info.notices

    falls = 2.0 ** np.concatenate([np.arange(-4, 6, 0.25), np.arange(7, 16, 0.25)])  # hidden, or clear
    slopes, falls = jnp.meshgrid(2.0 ** jnp.arange(0, 2, 0.25), jnp.asarray(falls))
    assert not jnp.any(jax.jit(jax.vmap(notices))(slopes.ravel(), falls.ravel()))


@pytest.mark.parametrize(("base", "unit"), [("sgd", 1e-20), ("adam", 1e-30)])
def test_a_slope_that_underflows_says_nothing(base, unit):
    assert not first_notices(BASES[base], lambda p, x, y: unit * network_loss(p, x, y))


@pytest.mark.parametrize(("start", "noticed"), [(0.0, True), (10.0, False)], ids=["nothing to gain", "far away"])
def test_a_search_that_sees_no_progress(start, noticed):
    """Single examples of a mean, from where it is and from far away."""
    tx = gen_optax.gen_sgd()

    def step(carry, x):
        w, state = carry
        value, grad = jax.value_and_grad(loss_fn)(w, x)
        updates, state = tx.update(grad, state, w, value=value, value_fn=functools.partial(loss_fn, x=x))
        return (optax.apply_updates(w, updates), state), optax.tree.get(state, "notices")

    def loss_fn(w, x):
        return jnp.mean((w - x) ** 2)

    w = jnp.full(4, start)
    (w, state), notices = jax.lax.scan(step, (w, tx.init(w)), jax.random.normal(jax.random.key(0), (80, 4)))
    assert not notices[30]
    assert bool(notices[-1] & gen_optax.Notice.SEARCH_IN_VAIN) == noticed
    if noticed:
        with pytest.warns(UserWarning, match=r"as along random steps.*first_fraction=1\.0"):
            gen_optax.averaged_params(state, w)


# --- schedules -------------------------------------------------------------------------------------------------------

COSINE = optax.cosine_decay_schedule(1.0, 100)
SCHEDULED = {
    "alone": optax.adamw(COSINE),
    "chain": optax.chain(optax.clip(1.0), optax.sgd(COSINE)),
    "injected": optax.inject_hyperparams(optax.adamw)(learning_rate=COSINE),
    "within injected": optax.inject_hyperparams(lambda b1: optax.adam(COSINE, b1))(b1=0.9),
    "group": optax.partition({"x": optax.sgd(COSINE), "y": optax.sgd(1.0)}, {"a": "x", "b": "y"}),
}
CONSTANT = {
    "alone": optax.adamw(1.0),
    "injected": optax.inject_hyperparams(optax.adamw)(learning_rate=1.0),
    "decayed weights": optax.inject_hyperparams(optax.adamw)(learning_rate=1.0, weight_decay=COSINE),
    "added weights": optax.chain(optax.add_decayed_weights(COSINE), optax.sgd(1.0)),
}


@pytest.mark.parametrize("base", SCHEDULED)
def test_gen_makes_up_for_a_schedule_in_the_base(base):
    with pytest.warns(UserWarning, match=r"GeN makes up for: its learning rate rises.*decay=.*num_steps=T") as caught:
        gen_optax.gen(SCHEDULED[base]).init({"a": W, "b": W})
    assert [w.filename for w in caught] == [__file__]


@pytest.mark.parametrize("base", CONSTANT)
def test_other_schedules_in_the_base_are_welcome(base):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gen_optax.gen(CONSTANT[base]).init({"a": W, "b": W})


WRONG = {
    "cosine": (optax.cosine_decay_schedule(1e-3, 1000), "0.001"),
    "warm-up": (optax.warmup_cosine_decay_schedule(0.0, 3e-4, 100, 1000), "0.0003"),
    "constant": (lambda count: 0.1, "0.1"),
    "descent": (lambda count: -COSINE(count), "-1"),
    "percent": (optax.linear_schedule(100.0, 0.0, 1000), "100"),
}
RIGHT = {
    "cosine": COSINE,
    "warm-up": optax.warmup_cosine_decay_schedule(0.0, 1.0, 700, 1000),
    "long warm-up": optax.linear_schedule(0.0, 1.0, 10**9),
    "constant": lambda count: 1.0,
    "one cycle": optax.cosine_onecycle_schedule(1000, 1.0),
    "restarts": optax.sgdr_schedule(
        [
            {"init_value": 0.0, "peak_value": p, "warmup_steps": 10, "decay_steps": 90, "end_value": 0.0}
            for p in (0.4, 1)
        ]
    ),
    "rises behind its horizon": lambda count: (1 - count / 1000) ** 2,
    "overflows": lambda count: 1 / (1 + count) ** 2,
    "cannot be evaluated": lambda count: 1e-3 if count < 10 else 1e-4,
    "no number": lambda count: count * jnp.nan,
}


@pytest.mark.parametrize("within", ["eager", "jit"])
@pytest.mark.parametrize("name", WRONG)
def test_a_decay_of_absolute_rates(name, within):
    decay, peak = WRONG[name]
    init = gen_optax.gen_sgd(decay=decay).init
    with pytest.raises(ValueError, match=rf"decay is a factor.*so its peak must be 1; this one's is {peak}"):
        (jax.jit(init) if within == "jit" else init)(W)


def test_a_horizon_and_a_decay():
    with pytest.raises(ValueError, match="Give one of them"):
        gen_optax.gen_sgd(num_steps=1000, decay=COSINE)


def test_a_warm_up_from_zero_is_no_end():
    tx = gen_optax.gen_sgd(decay=RIGHT["warm-up"])
    state = tx.init(W)
    for _ in range(2):
        _, state = tx.update(jax.grad(bowl)(W), state, W, value_fn=bowl)
    assert optax.tree.get(state, "notices") == 0


@pytest.mark.parametrize("name", RIGHT)
def test_a_decay_from_one(name):
    _settings.require_peak_of_one(RIGHT[name])


def test_a_decay_with_a_traced_horizon_is_taken_as_it_is():
    def init(horizon):
        return gen_optax.gen_sgd(decay=lambda count: 1e-3 * jnp.maximum(0, 1 - count / horizon)).init(W)

    jax.jit(init)(100.0)


# --- losses that are not what they seem ------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
@pytest.mark.parametrize("calls", ["one", "all"])
def test_a_value_that_is_not_finite_where_the_loss_is(wrong, calls):
    """As of a loss that is scaled for float16. The loss itself is looked at: nothing is taken back."""
    tx = gen_optax.gen_sgd()

    def step(carry, xs):
        (w, state), (call, x) = carry, xs
        loss_fn = lambda w: jnp.mean((w - x) ** 2)  # noqa: E731
        value, grads = jax.value_and_grad(loss_fn)(w)
        is_wrong = (call == 100) | (calls == "all")
        value = jnp.where(is_wrong, wrong, value)
        updates, state = tx.update(grads, state, w, value=value, value_fn=loss_fn)
        return (optax.apply_updates(w, updates), state), gen_optax.metrics(state)

    xs = jnp.arange(200), 3 + jax.random.normal(jax.random.key(0), (200, 8))
    w = jnp.zeros(8)
    (w, _), seen = jax.lax.scan(step, (w, tx.init(w)), xs)
    assert not np.isin(seen["status"], [gen_optax.ProbeStatus.OVERSHOOT, gen_optax.ProbeStatus.NOT_FINITE]).any()
    assert seen["notices"][-1] == gen_optax.Notice.VALUE_DIFFERS
    assert jnp.mean((w - 3) ** 2) < 0.5


def test_stacked_models_are_warned_of():
    """Each of the models side by side counts."""
    tx = gen_optax.gen(optax.scale_by_adam())
    params = jnp.ones((3, 2, 3))

    def step(w, state):
        return tx.update(2 * w, state, w, value_fn=lambda w: jnp.sum(w**2))[1]

    states = jax.vmap(tx.init)(params)
    for _ in range(4):
        states = jax.vmap(step)(params, states)
    for read in (gen_optax.metrics, functools.partial(gen_optax.averaged_params, params=params)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read(states)
        assert ["point uphill" in str(w.message) for w in caught] == [True, False]
        assert ["no learning rate was found" in str(w.message) for w in caught] == [False, True]


def test_a_loss_that_binds_its_batch_keeps_it():
    """`update` may be given another one, for the rest of a chain."""

    def loss_fn(w, batch):
        return jnp.sum((w - batch) ** 2)

    tx = gen_optax.scale_by_gen(controller=gen_optax.algorithm_1(), every=1)
    w = jnp.zeros(1)
    held_out = functools.partial(loss_fn, batch=7.0)
    state = tx.update(-jnp.ones(1), tx.init(w), w, value_fn=held_out, batch=2.0)[1]
    assert state.info.value == 49
