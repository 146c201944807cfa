"""The training loop: what a cell holds, resuming, interruption."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import toy

from benchmarks import methods, rule, runner, store


@pytest.fixture
def results(tmp_path):
    return store.Store(tmp_path)


def test_a_cell_says_what_happened_and_under_which_circumstances(results):
    workload = toy()
    key = runner.cell_key(workload, "gen:every=4", seed=1)
    cell = runner.run(key, workload, results)
    assert cell["key"] == {
        "workload": "toy",
        "method": "gen:every=4",
        "seed": 1,
        "batch_size": 16,
        "num_steps": 40,
        "precision": "float32",
    }
    assert cell["final"]["test"]["accuracy"] > 0.8
    assert not cell["diverged"]
    assert cell["steps"] == 40
    assert cell["seconds_per_step"] > 0
    assert cell["probes"]["probes"] == sum(cell["probes"]["statuses"].values()) > 0
    assert cell["curves"]["step"][-1] == 40
    assert len(cell["curves"]["loss"]) == len(cell["curves"]["learning_rate"]) == 20
    assert cell["first_loss"] > cell["curves"]["loss"][-1]
    assert cell["highest_learning_rate"] >= max(cell["curves"]["learning_rate"])
    assert {"jax", "optax"} <= set(cell["versions"])
    assert set(cell["machine"]) == {"architecture", "cores", "backend", "device"}
    assert list(store.Store(results.root).cells()) == [cell]


def test_the_same_cell_is_the_same_computation():
    workload = toy()
    key = runner.cell_key(workload, "baseline:learning_rate=0.01", seed=3)
    first, second = (runner.train(key, workload) for _ in range(2))
    assert first["curves"] == second["curves"]
    assert first["final"] == second["final"]


def test_the_test_split_is_not_read_with_the_tuning_seed():
    def evaluate(params, model_state, split):
        assert split == "validation"
        return {"loss": 0.0, "accuracy": 1.0}

    workload = toy(evaluate=evaluate)
    cell = runner.train(runner.cell_key(workload, "momo", runner.TUNING_SEEDS[0], num_steps=2), workload)
    assert set(cell["final"]) == {"validation", "train_loss"}


def test_a_finished_cell_is_not_run_again(results, monkeypatch):
    workload = toy()
    key = runner.cell_key(workload, "momo", seed=1, num_steps=4)
    cell = runner.run(key, workload, results)
    monkeypatch.setattr(runner, "train", lambda *_: pytest.fail("trained again"))
    assert runner.run(key, workload, results) == cell
    assert runner.run_all([key], workload, results) == [cell]


def test_a_divergence_is_a_finished_cell_that_stops_early(results):
    workload = toy(loss_fn=lambda params, model_state, *_: (jnp.log(jnp.sum(params["b0"])), model_state))
    key = runner.cell_key(workload, "baseline:learning_rate=0.1", seed=1)
    cell = runner.run(key, workload, results)
    assert cell["diverged"]
    assert cell["steps"] < 40
    assert cell["final"]["train_loss"] is None
    assert results.find(key) == cell


def test_an_error_is_kept_and_tried_again(results, monkeypatch):
    workload = toy()
    key = runner.cell_key(workload, "momo", seed=1, num_steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "train", lambda *_: (_ for _ in ()).throw(MemoryError("full")))
        cell = runner.run(key, workload, results)
    assert cell["error"] == "MemoryError: full"
    assert list(results.cells()) == [cell]
    assert runner.run(key, workload, results)["steps"] == 4
    assert len(list(results.cells())) == 1


def test_frozen_leaves_stay_and_no_optimizer_sees_them():
    workload = toy(trainable=lambda params: {name: name == "b0" for name in params})
    params, model_state = workload.init(jax.random.key(0))
    method = methods.build(methods.parse("gen"), workload, 3)
    state, step = runner.start(workload, method, params, model_state)
    batches = runner.batches_for(workload, method, 0, 16)
    assert all(leaf.shape != (4, 8) for leaf in jax.tree.leaves(state.optimizer))
    for _ in range(3):
        state, _ = step(state, *next(batches), jax.random.key(1))
    trained = runner.merge(state.params, state.frozen)
    np.testing.assert_array_equal(trained["w0"], params["w0"])
    assert jnp.any(trained["b0"] != 0)
    assert state.model["seen"] == 3


def test_the_probe_gets_its_own_batches():
    workload = toy()
    method = methods.build(methods.parse("gen:batch=3,probe=exact"), workload, 3)
    batch, others = next(runner.batches_for(workload, method, 0, 16))
    assert others["x"].shape == (3, 16, 4)
    assert not any(np.array_equal(batch["x"], other) for other in others["x"])


def test_precision():
    workload = toy()
    params, model_state = workload.init(jax.random.key(0))
    batch = next(workload.batches(0, 16))
    exact, _ = workload.loss_fn(params, model_state, batch, None)
    mixed = runner.in_precision(workload, "mixed")
    loss, _ = mixed.loss_fn(params, model_state, batch, None)
    assert loss.dtype == jnp.float32
    assert 0 < abs(loss - exact) < 0.02
    low, _ = runner.in_precision(workload, "bfloat16").init(jax.random.key(0))
    assert low["w0"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="Unknown precision 'float8'"):
        runner.in_precision(workload, "float8")


@pytest.mark.parametrize("seed", [1, 101])
def test_curves_are_means_over_windows(seed, monkeypatch):
    seen = []
    thinned = store.thinned
    monkeypatch.setattr(store, "thinned", lambda curves: seen.append(curves) or thinned(curves, 5))
    workload = toy()
    cell = runner.train(runner.cell_key(workload, "baseline:learning_rate=0.01", seed, num_steps=250), workload)
    (every,) = seen
    assert cell["curves"]["step"] == [50, 100, 150, 200, 250]
    np.testing.assert_allclose(cell["curves"]["loss"], np.reshape(every["loss"], (5, 50)).mean(1))
    assert cell["first_loss"] == pytest.approx(np.mean(every["loss"][:2]))
    assert cell["highest_learning_rate"] == pytest.approx(0.01)


def test_cells_of_gen_say_of_which_rule_they_are(results):
    workload = toy()
    for method in ("gen", "momo"):
        runner.run(runner.cell_key(workload, method, seed=1, num_steps=2), workload, results)
    gen, momo = results.cells()
    assert gen["rule"] == rule.fingerprint()
    assert "rule" not in momo


def test_a_cell_of_another_rule_is_trained_again(results, monkeypatch):
    workload = toy()
    gen, momo = (runner.cell_key(workload, method, seed=1, num_steps=2) for method in ("gen", "momo"))
    old = {key["method"]: runner.run(key, workload, results) for key in (gen, momo)}
    monkeypatch.setattr(rule, "fingerprint", lambda *_: "0ther0ne")
    new = runner.run(gen, workload, results)
    assert new["rule"] == "0ther0ne"
    assert results.find(gen) == new
    monkeypatch.setattr(runner, "train", lambda *_: pytest.fail("trained again"))
    assert runner.run(gen, workload, results) == new
    assert runner.run(momo, workload, results) == old["momo"]  # which no rule changes
    known = {"groups": [[{"rule": "0ther0ne"}, {"rule": "th1rd0ne"}]]}
    results.set_note(rule.NOTE, lambda _: known)
    monkeypatch.setattr(rule, "fingerprint", lambda *_: "th1rd0ne")
    assert runner.run(gen, workload, results) == new  # they are known to give the same results
