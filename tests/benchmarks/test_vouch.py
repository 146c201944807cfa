"""Golden runs: what is vouched for, and what is not."""

import functools
import math

import pytest
from toy import toy

from benchmarks import __main__ as command_line
from benchmarks import rule, runner, store, vouch

OLD, NEW = "01dru1e0", "newru1e0"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Golden runs of a rule."""
    monkeypatch.setattr(vouch, "GOLDEN", (("toy", "gen", "float32"), ("toy", "gen_horizon", "float32")))
    monkeypatch.setattr(vouch, "NUM_STEPS", 12)
    monkeypatch.setattr(rule, "fingerprint", lambda *_: OLD)
    results = store.Store(tmp_path)
    assert "2 golden runs of rule 01dru1e0" in vouch.renew(results, load)[0]
    return results


def load(name):
    return toy(name=name)


def test_a_refactoring_is_recorded_as_the_same_rule(results, monkeypatch):
    monkeypatch.setattr(rule, "fingerprint", lambda *_: NEW)
    vouched, lines = vouch.vouch(results, load)
    assert vouched
    assert "Rule newru1e0 gives the results of rule 01dru1e0" in lines[-1]
    (group,) = results.note(rule.NOTE)["groups"]
    assert [entry["rule"] for entry in group] == [OLD, NEW]
    assert all({"rule", "commit", "date"} <= set(entry) for entry in group)
    monkeypatch.setattr(runner, "train", lambda *_: pytest.fail("trained again"))
    assert vouch.vouch(results, load) == (True, ["Rule newru1e0 is known to give the results of rule 01dru1e0."])


def test_a_third_version_joins_the_group(results, monkeypatch):
    other = [{"rule": "0ther0th", "commit": None, "date": None}]
    results.set_note(rule.NOTE, lambda _: {"groups": [other]})
    for name in (NEW, "th1rd0ne"):
        monkeypatch.setattr(rule, "fingerprint", lambda *_, name=name: name)
        assert vouch.vouch(results, load)[0]
    groups = results.note(rule.NOTE)["groups"]
    assert [[entry["rule"] for entry in group] for group in groups] == [["0ther0th"], [OLD, NEW, "th1rd0ne"]]


def test_a_rule_with_other_results_is_not(results, monkeypatch, capsys):
    monkeypatch.setattr(rule, "fingerprint", lambda *_: NEW)
    train = runner.train

    def bolder(key, workload):
        """As if a constant of the rule were another: its rates are 1 % higher from some step on."""
        cell = train(key, workload)
        cell["curves"]["learning_rate"][-1] *= 1.01
        return cell

    monkeypatch.setattr(runner, "train", bolder)
    vouched, lines = vouch.vouch(results, load)
    assert not vouched
    assert "toy, gen: differs in loss by 0, learning_rate by 0.0099" in lines[0]
    assert "Rule newru1e0 gives other results than rule 01dru1e0" in lines[-1]
    assert results.note(rule.NOTE) is None
    monkeypatch.setattr(command_line, "_load", lambda tiny: load)
    with pytest.raises(SystemExit) as status:
        command_line.main(["vouch", "--results", str(results.root)])
    assert status.value.code == 1
    assert "--renew" in capsys.readouterr().out
    command_line.main(["vouch", "--renew", "--results", str(results.root)])
    assert {row["rule"] for row in results.note("golden")} == {NEW}


def test_a_change_that_shows_only_after_a_status(results, monkeypatch):
    """Runs without it have to be equal; runs with it become the golden runs of the new rule."""
    monkeypatch.setattr(rule, "fingerprint", lambda *_: NEW)
    golden = results.note("golden")
    golden[0]["statuses"]["jump"] = 1
    golden[0]["curves"]["loss"][-1] *= 2
    results.set_note("golden", lambda _: golden)
    assert not vouch.vouch(results, load)[0]
    assert not vouch.vouch(results, load, "accepted")[0]  # all have it
    vouched, lines = vouch.vouch(results, load, "jump")
    assert vouched
    assert "toy, gen: differs in loss by 0.5, learning_rate by 0, as it may: it has a jump" in lines
    assert "Rule newru1e0 gives the results of rule 01dru1e0 where no probe is a jump" in lines[-1]
    assert results.note(rule.NOTE)["groups"][0][1]["but_where"] == "jump"
    assert vouch.vouch(results, load) == (True, ["Rule newru1e0 is known to give the results of rule newru1e0."])


def test_the_golden_runs_again(results):
    """On this machine, of the code that they are of: they are compared, not taken for known."""
    alike, lines = vouch.again(results, load)
    assert alike
    assert lines[-1] == "The golden runs differ from the stored ones by 0 at most."
    golden = results.note("golden")
    golden[0]["curves"]["loss"][-1] *= 1.1
    results.set_note("golden", lambda _: golden)
    alike, lines = vouch.again(results, load)
    assert not alike
    assert lines[-1].startswith("The golden runs differ from the stored ones by 0.0")
    assert results.note(rule.NOTE) is None


def test_of_the_ways_to_compare_only_one_is_taken(capsys):
    with pytest.raises(SystemExit) as status:
        command_line.main(["vouch", "--again", "--but-where", "jump"])
    assert status.value.code == 2
    assert "not allowed with argument --again" in capsys.readouterr().err


def test_without_golden_runs_nothing_is_compared(tmp_path):
    alike, lines = vouch.again(store.Store(tmp_path), load)
    assert not alike
    assert "vouch --renew" in lines[0]


def test_without_golden_runs_nothing_is_vouched_for(tmp_path):
    vouched, lines = vouch.vouch(store.Store(tmp_path), load)
    assert not vouched
    assert "vouch --renew" in lines[0]


def test_differences():
    def curves(loss):
        return {"loss": loss, "learning_rate": [0.1, None]}

    assert vouch.differences(curves([1.0, -2.0]), curves([1.0, -2.1]))["loss"] == pytest.approx(0.1 / 2.1)
    assert vouch.differences(curves([0.0, None]), curves([0.0, None])) == {"loss": 0.0, "learning_rate": 0.0}
    assert vouch.differences(curves([1.0, None]), curves([1.0, 2.0]))["loss"] == math.inf
    assert vouch.differences(curves([1.0]), curves([1.0, 2.0]))["loss"] == math.inf


def test_the_golden_runs_have_every_family_of_the_core():
    families = {method.partition(":")[0] for _, method, _ in vouch.GOLDEN}
    assert families == {*rule.FAMILIES} - {"gen_paper"}  # which is gen_paper_horizon without a decay


def test_the_golden_runs_are_long_enough_to_see_the_alignment():
    """A stretch of the run ends at call 256; the probes from there to the end of the run apply what it says."""
    load_toy = functools.partial(toy, num_steps=vouch.NUM_STEPS)
    with_it, without = (
        runner.train(runner.cell_key(load_toy(), method, 1), load_toy()) for method in ("gen", "gen:alignment=none")
    )
    apart = vouch.differences(*(store.finite(cell["curves"]) for cell in (with_it, without)))
    assert apart["learning_rate"] > vouch.TOLERANCE


def test_the_golden_runs_have_losses_of_every_kind():
    """That begins at 0 (policy), that is near 0 in the end (Beale), sparse gradients (word vectors), low precision."""
    assert {"digits_policy", "beale", "word2vec_moby", "variance_prices"} <= {name for name, _, _ in vouch.GOLDEN}
    assert {precision for _, _, precision in vouch.GOLDEN} > {"float32"}
