"""Each alias is gen around the optimizer that it names."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import network, network_loss, train

import gen_optax

PAPER = gen_optax.algorithm_1(init_learning_rate=1e-2)
ALIASES = [gen_optax.gen_sgd, gen_optax.gen_adam, gen_optax.gen_adamw, gen_optax.gen_lion]
DECAY_MASK = {"layer0": {"w": True, "b": False}, "layer1": {"w": True, "b": False}}


@pytest.mark.parametrize(
    ("alias", "base"),
    [
        (gen_optax.gen_sgd, optax.sgd(1.0)),
        (lambda **o: gen_optax.gen_sgd(momentum=0.9, **o), optax.sgd(1.0, 0.9)),
        (lambda **o: gen_optax.gen_sgd(momentum=0.9, nesterov=True, **o), optax.sgd(1.0, 0.9, nesterov=True)),
        (gen_optax.gen_adam, optax.adam(1.0)),
        (lambda **o: gen_optax.gen_adam(b1=0.8, b2=0.95, eps=1e-3, **o), optax.adam(1.0, 0.8, 0.95, 1e-3)),
        (gen_optax.gen_adamw, optax.adamw(1.0)),
        (
            lambda **o: gen_optax.gen_adamw(b1=0.8, b2=0.95, eps=1e-3, weight_decay=1.0, mask=DECAY_MASK, **o),
            optax.adamw(1.0, 0.8, 0.95, 1e-3, weight_decay=1.0, mask=DECAY_MASK),
        ),
        (gen_optax.gen_lion, optax.lion(1.0)),
        (
            lambda **o: gen_optax.gen_lion(b1=0.8, b2=0.95, weight_decay=1.0, mask=DECAY_MASK, **o),
            optax.lion(1.0, 0.8, 0.95, weight_decay=1.0, mask=DECAY_MASK),
        ),
    ],
)
def test_is_gen_around_its_base(alias, base):
    params, batch = network()
    options = dict(controller=PAPER, probe=gen_optax.exact(), every=2, num_steps=10)
    found = train(alias(**options), params, network_loss, 5, **batch)
    expected = train(gen_optax.gen(base, **options), params, network_loss, 5, **batch)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_gen_is_the_chain():
    params, batch = network()
    options = dict(controller=PAPER, every=2, num_steps=10)
    found = train(gen_optax.gen(optax.adam(1.0), **options), params, network_loss, 5, **batch)
    chain = optax.chain(optax.adam(1.0), gen_optax.scale_by_gen(**options))
    jax.tree.map(np.testing.assert_array_equal, found, train(chain, params, network_loss, 5, **batch))


def test_gen_hands_the_gradient_on():
    """With value given, free_slope works without grad; an explicit grad wins; without value there is none."""
    probe = gen_optax.finite_difference(free_slope=True)
    tx = gen_optax.gen(optax.sgd(1.0), controller=PAPER, probe=probe, every=1)
    w = jnp.array([1.0, 2.0])

    def loss_fn(w):
        return jnp.sum(w**2)

    def slope(**extra):
        _, state = tx.update(2 * w, tx.init(w), w, value_fn=loss_fn, **extra)
        return gen_optax.metrics(state)["slope"]

    np.testing.assert_allclose(slope(value=loss_fn(w)), 20.0)
    np.testing.assert_allclose(slope(loss=loss_fn(w)), 20.0)
    np.testing.assert_allclose(slope(value=loss_fn(w), grad=3 * w), 30.0)
    with pytest.raises(ValueError, match=r"needs grad=.*gen_optax\.gen"):
        slope()


def test_help_shows_the_options():
    """Every one by name, everywhere: the aliases have those of their optimizer in front."""
    options = inspect.signature(gen_optax.scale_by_gen).parameters
    assert list(inspect.signature(gen_optax.gen).parameters) == ["base", *options]
    for alias in ALIASES:
        parameters = inspect.signature(alias).parameters
        assert list(parameters)[-len(options) :] == list(options)
        assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    with pytest.raises(ValueError, match=r"optax\.adamw\(1\.0\), got 0\.1"):
        gen_optax.gen(0.1)
    with pytest.raises(TypeError, match="learning_rat"):
        gen_optax.gen(optax.sgd(1.0), learning_rat=0.1)


def test_the_public_face():
    """Every name of the contract, and nothing undocumented."""
    pieces = ["fit_quadratic", "probe_losses", "directional_derivatives", "mean_value_fn", "metrics"]
    parts = [
        "finite_difference",
        "exact",
        "retrospective",
        "balance",
        "algorithm_1",
        "Controller",
        "Probe",
        "Step",
        "Path",
    ]
    types = ["GenState", "GenInfo", "QuadraticFit", "ProbeStatus", "Measurement", "Context"]
    contract = {"scale_by_gen", "gen", "gen_sgd", "gen_adam", "gen_adamw", "gen_lion", *pieces, *parts, *types}
    assert contract <= set(gen_optax.__all__)
    for name in gen_optax.__all__:
        assert inspect.getdoc(getattr(gen_optax, name)), name


@pytest.mark.parametrize("alias", ALIASES)
def test_options_are_injected_by_name(alias):
    """Numbers among them become hyperparameters of the state."""
    options = dict(controller=PAPER, every=4, min_learning_rate=0.25, probe=gen_optax.exact())
    state = optax.inject_hyperparams(alias)(**options).init(jnp.zeros(3))
    assert {"every", "min_learning_rate"} <= set(state.hyperparams)
    assert gen_optax.metrics(state)["learning_rate"] == 0.25
