"""The recipes for training frameworks that need none of them: what the pages say, against stand-ins for the calls."""

import dataclasses
import operator
import re
import sys
import textwrap
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from frameworks.page import BLOCK, PAGES

import gen_optax

NUM_STEPS = 60
NAMES = sorted(path.stem for path in PAGES.glob("*.md"))


def section(name):
    """The python blocks of a section of others.md."""
    text = (PAGES / "others.md").read_text()
    return BLOCK.findall(re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1])


def run(block, namespace):
    exec(compile(block, "others.md", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", NAMES)
def test_the_code_of_a_page_compiles_and_is_narrow(name):
    blocks = BLOCK.findall((PAGES / f"{name}.md").read_text())
    assert blocks
    for block in blocks:
        compile(block, name, "exec")
        assert max(map(len, block.splitlines())) <= 75


@pytest.mark.parametrize("name", sorted({*NAMES} - {"index", "others"}))
def test_every_recipe_is_run_with_its_framework(name):
    folder = PAGES.parents[2] / "tests" / "frameworks"
    pin, *_ = (folder / f"{name}.txt").read_text().splitlines()
    assert f'run_page("{name}"' in (folder / f"with_{name}.py").read_text()
    assert re.search(rf"^all=\(.*\b{name}\b", (PAGES.parents[2] / ".ci" / "frameworks").read_text(), re.MULTILINE)
    assert pin.split("==")[1] in (PAGES / f"{name}.md").read_text(), "the page names the version that is tested"


def batches(rng):
    while True:
        x = rng.standard_normal((32, 3), np.float32)
        yield x, x @ np.array([1.0, -2.0, 3.0], np.float32) + 1.0


# levanter


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What the page uses of levanter's class."""

    learning_rate: float = 6e-4
    weight_decay: float = 0.0

    @classmethod
    def register_subclass(cls, name):
        return lambda subclass: subclass

    def build_weight_decay_mask(self):
        return None


class Linear(eqx.Module):
    weight: jax.Array
    bias: jax.Array
    name: str  # no parameter: partitioned off, like levanter's non-trainables

    def __call__(self, x):
        return x @ self.weight + self.bias


def levanter_step(optimizer, model, opt_state, batch):
    """Trainer._train_step and take_train_step of levanter, without their axes."""
    x, y = batch

    def raw_loss(model):
        return jnp.mean((model(x) - y) ** 2)

    loss, grads = eqx.filter_value_and_grad(raw_loss)(model)

    def obj_fun(trainable_model):
        return raw_loss(eqx.combine(trainable_model, model))

    trainable_model = eqx.filter(model, eqx.is_inexact_array)
    updates, opt_state = optimizer.update(grads, opt_state, params=trainable_model, obj_fn=obj_fun, loss=loss)
    return eqx.apply_updates(model, updates), opt_state, loss


def test_levanter(monkeypatch):
    logged = []
    tracker = types.ModuleType("levanter.tracker")
    tracker.jit_log = lambda scalars: jax.debug.callback(lambda x: logged.append(x), scalars)
    optim = types.ModuleType("levanter.optim")
    optim.OptimizerConfig = OptimizerConfig
    levanter = types.ModuleType("levanter")
    levanter.tracker = tracker
    for module in (levanter, tracker, optim):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    (block,) = section("levanter")
    optimizer = run(block, {"__name__": "recipe"})["GenConfig"]().build(NUM_STEPS)
    model = Linear(jnp.zeros(3), jnp.zeros(()), "linear")
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    step = eqx.filter_jit(lambda *args: levanter_step(optimizer, *args))
    losses = []
    for _, batch in zip(range(NUM_STEPS), batches(np.random.default_rng(0)), strict=False):
        model, opt_state, loss = step(model, opt_state, batch)
        losses.append(float(loss))
    jax.effects_barrier()
    assert losses[-1] < 0.1 * losses[0]
    found = gen_optax.metrics(opt_state)
    assert found["learning_rate"] > 0
    assert len(logged) == NUM_STEPS
    assert max(float(line["optim/applied_learning_rate"]) for line in logged) > 0


# big_vision


def big_vision_make(config, frozen):
    """What `make` of big_vision/optax.py chains for a config with one schedule and frozen parameters."""
    moves = jax.tree.map(operator.not_, frozen)
    tx_func = operator.attrgetter(config.optax_name)(optax)
    assert config.wd is None
    assert config.schedule == {"decay_type": "stair"}, "which is the constant 1 without steps"
    return optax.chain(
        optax.identity(),
        optax.masked(tx_func(**config.optax), moves),
        optax.scale(config.lr),
        optax.masked(optax.scale_by_schedule(lambda step: jnp.float32(1.0)), moves),
        optax.masked(optax.set_to_zero(), frozen),
        optax.scale(-1.0),
    )


@pytest.mark.parametrize("freezes", [False, True])
def test_big_vision(monkeypatch, freezes):
    monkeypatch.setattr(optax, "big_vision", types.SimpleNamespace(), raising=False)
    for name in ("big_vision", "big_vision.optax"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    register, configure, replaced = section("big_vision")
    names = run(configure, run(register, {"__name__": "recipe"}))
    config = types.SimpleNamespace(total_steps=NUM_STEPS)
    names["configure"](config)
    config.optax["weight_decay"] = 0.0
    params = {"kernel": jnp.zeros(3), "bias": jnp.ones(()), "unused": jnp.ones(2)}
    frozen = {"kernel": False, "bias": freezes, "unused": freezes}
    tx = big_vision_make(config, frozen)

    # The line of update_fn, with the page's in its place.
    exec(
        "def update_fn(params, opt, x, y):\n"
        "    def loss_fn(params):\n"
        "        return jnp.mean((x @ params['kernel'] + params['bias'] - y) ** 2)\n"
        "    loss, grads = jax.value_and_grad(loss_fn)(params)\n"
        + textwrap.indent(replaced, "    ")
        + "    return optax.apply_updates(params, updates), opt, loss\n",
        names | {"jax": jax, "jnp": jnp, "tx": tx},
        names,
    )
    step = jax.jit(names["update_fn"], donate_argnums=(0, 1))
    start, opt, losses = jax.tree.map(np.array, params), tx.init(params), []
    for _, (x, y) in zip(range(NUM_STEPS), batches(np.random.default_rng(0)), strict=False):
        params, opt, loss = step(params, opt, x, y)
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]
    assert gen_optax.metrics(opt)["learning_rate"] > 0
    if freezes:
        np.testing.assert_array_equal(params["bias"], start["bias"])
        np.testing.assert_array_equal(params["unused"], start["unused"])
