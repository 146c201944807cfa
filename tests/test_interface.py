"""Names: the old ones raise and say what to write, misspelt ones raise, synonyms work, and tools see the options."""

import functools
import importlib.util
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import gen_state, greedy, settings_of

import gen_optax

MAKERS = {
    "gen": functools.partial(gen_optax.gen, optax.sgd(1.0)),
    "scale_by_gen": gen_optax.scale_by_gen,
    **{name: getattr(gen_optax, name) for name in ("gen_sgd", "gen_adam", "gen_adamw", "gen_lion")},
}
OLD = {
    "init_learning_rate": (1e-3, "controller=gen_optax.balance(init_learning_rate=...), or algorithm_1("),
    "smoothing": (0.9, "controller=gen_optax.algorithm_1(smoothing=...)"),
    "sigma": (1.5, "controller=gen_optax.balance(sigma=...)"),
    "max_change": (None, "controller=gen_optax.balance(max_change=...), or algorithm_1(clamp=...)"),
    "smooth": ("log", "controller=gen_optax.algorithm_1() "),
    "learning_rate": (1e-3, "nothing: the learning rate is found. Bounds are min_learning_rate and max_learning_rate"),
}


# --- the names of settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("old", OLD)
def test_old_names_say_what_to_write(maker, old):
    value, instead = OLD[old]
    message = re.escape(f"{maker} has no argument {old}. Write {instead}")
    with pytest.raises(TypeError, match=message):
        MAKERS[maker](**{old: value})
    with pytest.raises(TypeError, match=message):
        MAKERS[maker](num_steps=100, **{old: value})


@pytest.mark.parametrize("old", OLD)
def test_what_the_errors_say_to_write_exists(old):
    """Every `make(name=...)` in them is a name that `make` has, every bound one that `gen` has."""
    with pytest.raises(TypeError) as caught:
        gen_optax.gen_adamw(**{old: 1.0})
    made = re.findall(r"(balance|algorithm_1)\((?:(\w+)=)?", str(caught.value))
    bounds = re.findall(r"m\w+_learning_rate", str(caught.value))
    assert made or bounds
    for make, name in made:
        assert not name or name in inspect.signature(getattr(gen_optax, make)).parameters
    assert set(bounds) <= set(inspect.signature(gen_optax.gen).parameters)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_learning_rate_without_a_name(maker):
    """As every optimizer of optax takes one."""
    with pytest.raises(TypeError, match=rf"{maker} takes its settings by name, got 0\.001 without one"):
        MAKERS[maker](1e-3)
    with pytest.raises(TypeError, match=rf"{maker} takes its settings by name"):
        MAKERS[maker](optax.constant_schedule(1e-3), num_steps=10)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("misspelt", ["nums_steps", "smoth", "probes", "Controller", "looks_back"])
def test_misspelt_names(maker, misspelt):
    with pytest.raises(TypeError, match=f"'{misspelt}'"):
        MAKERS[maker](**{misspelt: 1})


@pytest.mark.parametrize(
    "make",
    [
        gen_optax.algorithm_1,
        gen_optax.balance,
        gen_optax.finite_difference,
        gen_optax.exact,
        gen_optax.retrospective,
    ],
)
def test_misspelt_names_of_controllers_and_probes(make):
    with pytest.raises(TypeError, match="'sigmas'"):
        make(sigmas=1)


def test_a_base_that_is_none():
    with pytest.raises(ValueError, match=r"gen needs an optax transformation as its base.*got 0\.001"):
        gen_optax.gen(1e-3)
    with pytest.raises(TypeError, match="base"):
        gen_optax.gen()


# --- the arguments of update -----------------------------------------------------------------------------------------


def bowl(w):
    return jnp.sum((w - 1.0) ** 2)


def doubled(w):
    return 2 * bowl(w)


W = jnp.zeros(2)
CALLS = {
    "names": {"value_fn": bowl, "value": 2.0},
    "obj_fn": {"obj_fn": bowl, "value": 2.0},
    "loss": {"value_fn": bowl, "loss": 2.0},
    "both": {"obj_fn": bowl, "loss": 2.0},
}


@pytest.mark.parametrize("around", ["scale_by_gen", "gen"])
@pytest.mark.parametrize("name", ["free slope", "retrospective"])
def test_synonyms_do_what_the_names_do(name, around):
    """Also where `gen` hands the gradient on because it was given the loss."""
    scaling = gen_optax.scale_by_gen(**settings_of(name, 0.1), every=1)
    chained = optax.chain(optax.sgd(1.0), scaling)
    tx = chained if around == "scale_by_gen" else gen_optax.gen(optax.sgd(1.0), **settings_of(name, 0.1), every=1)
    extra = {"grad": jax.grad(bowl)(W)} if around == "scale_by_gen" else {}
    results = [tx.update(jax.grad(bowl)(W), tx.init(W), W, **given, **extra) for given in CALLS.values()]
    assert gen_state(results[0][1]).learning_rate > 0
    for result in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, result, results[0])


def test_synonyms_of_update_win_over_the_loss_of_construction():
    tx = gen_optax.scale_by_gen(value_fn=bowl, probe=gen_optax.exact(), **greedy(0.1))
    for given, curvature in (({}, 2), ({"obj_fn": doubled}, 4), ({"value_fn": doubled}, 4)):
        _, state = tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), jnp.zeros(1), **given)
        np.testing.assert_allclose(state.info.curvature, curvature, rtol=1e-6)


@pytest.mark.parametrize("maker", ["scale_by_gen", "gen", "gen_adamw"])
def test_a_name_and_its_synonym_are_one_too_many(maker):
    tx = MAKERS[maker]()
    state = tx.init(W)
    with pytest.raises(ValueError, match=r"both value_fn and obj_fn, which mean the same.*Pass one"):
        tx.update(W, state, W, value_fn=bowl, obj_fn=bowl)
    with pytest.raises(ValueError, match=r"both value and loss, which mean the same.*Pass one"):
        tx.update(W, state, W, value_fn=bowl, value=2.0, loss=2.0)


# --- what tools see --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", [name for name in MAKERS if name != "gen"])
def test_signatures_show_every_option(maker):
    parameters = inspect.signature(MAKERS[maker]).parameters
    options = [name for name in inspect.signature(gen_optax.gen).parameters if name != "base"]
    expected = "controller probe every num_steps decay average min_learning_rate max_learning_rate axis_name value_fn"
    assert options == expected.split()
    assert list(parameters)[-len(options) :] == options
    assert all(p.kind == p.KEYWORD_ONLY for p in parameters.values())
    assert all(parameters[name].default is None for name in options)


def test_the_signature_of_gen_adamw():
    own = list(inspect.signature(gen_optax.gen_adamw).parameters)[:5]
    assert own == ["b1", "b2", "eps", "weight_decay", "mask"]


@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="needs mypy")
def test_a_type_checker_finds_misspelt_names(tmp_path, monkeypatch):
    """In `gen`, which lists its options, and in an alias, which hands them on."""
    from mypy import api

    config, file = tmp_path / "mypy.ini", tmp_path / "uses.py"
    root = pathlib.Path(gen_optax.__file__).parents[1]
    skipped = "".join(f"\n[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("jax", "numpy", "optax"))
    config.write_text(f"[mypy]\nmypy_path = {root}\nignore_missing_imports = true\n{skipped}")
    file.write_text(
        "from typing import Any\n"
        "import gen_optax\n"
        "base: Any = None\n"
        "gen_optax.gen(base, num_steps=1, controller=gen_optax.balance(sigma=1.5))\n"
        "gen_optax.gen_adamw(num_steps=1, weight_decay=0.1, probe=gen_optax.retrospective())\n"
        "gen_optax.gen(base, nums_steps=1)\n"
        "gen_optax.gen_adamw(nums_steps=1)\n"
        "gen_optax.gen_adamw(1e-3)\n"
        "gen_optax.gen_sgd(num_steps='many')\n"
    )
    monkeypatch.chdir(tmp_path)
    report, trouble, _ = api.run(["--config-file", str(config), "--cache-dir", str(tmp_path / "cache"), str(file)])
    assert not trouble
    found = {int(line.split(":")[1]): line for line in report.splitlines() if re.match(r".*uses\.py:\d+: error", line)}
    assert set(found) == {6, 7, 8, 9}, report
    assert all("nums_steps" in found[line] for line in (6, 7))
