"""Vouches for the core as it is: does it give the results that another version of it gave?

    vouch(results, load)                      # trains the golden runs again and compares them with what is stored
    vouch(results, load, but_where="jump")    # a run with a probe of this status may differ
    again(results, load)                      # the same code on this machine: nothing is recorded

A change of the code that is not meant to change any result, a refactoring, has another fingerprint. If every golden run
comes out as before, the new fingerprint is recorded in `rules.json` beside the old one, and results of either count as
of one rule. A change that can show only after probes of some status, such as what follows a jump, leaves all results
without one as they are. It is vouched for by the golden runs without one. The golden runs are short. Between them they
have all controllers, other probes, a given rate and low precision, a loss that begins at 0 and one without noise, and
every phase of the default: its start, its search, its hold and the first alignment.
"""

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import rule, runner, store
from benchmarks.workload import Workload

# Algorithm 1 has the clamp of its authors' package: without one a run is chaotic, and rounding decides how it ends.
GOLDEN = (
    ("digits_mlp", "gen", "float32"),
    ("digits_mlp", "gen_horizon", "float32"),
    ("digits_mlp", "gen_horizon", "mixed"),
    ("digits_mlp", "gen_paper_horizon:clamp=2", "float32"),
    ("digits_mlp", "gen:batch=independent,probe=exact", "float32"),
    ("digits_autoencoder", "gen", "float32"),
    ("digits_policy", "gen", "float32"),
    ("logreg_minibatch", "gen", "float32"),
    ("logreg_minibatch", "gen_horizon", "float32"),
    ("logreg_minibatch", "gen:init_learning_rate=0.001", "float32"),
    ("logreg_minibatch", "gen:batch=independent,probe=finite_difference", "float32"),
    ("logreg_minibatch", "cdat", "float32"),
    ("logreg_minibatch", "lqa", "float32"),
    ("variance_prices", "gen", "float32"),
    ("word2vec_moby", "gen", "float32"),
    ("beale", "gen", "float32"),
)
NUM_STEPS, SEED = 320, 1
TOLERANCE = 5e-3
"""By how much of itself any loss or learning rate of a golden run may differ.

The order of additions may change with the code, and with the machine. Here a change of all weights by 3e-7 of
themselves grows to 1.4e-4, while the constants of a rule move rates by per cents.
"""
_NOTE = "golden"
_COMPARED = ("loss", "learning_rate")
_NO_GOLDEN_RUNS = "There are no golden runs. Make them with this rule: python -m benchmarks vouch --renew"

Load = Callable[[str], Workload]
"""A workload by its name."""


def vouch(results: store.Store, load: Load, but_where: str | None = None) -> tuple[bool, list[str]]:
    """Compares, and records today's rule as one that gives the same results.

    Args:
      results: where the golden runs are stored.
      load: makes a workload.
      but_where: the status of a probe, in lower case, after which results may differ.

    Returns:
      Whether the rule is vouched for, and lines that say what was found.
    """
    today = rule.fingerprint()
    golden = results.note(_NOTE)
    if golden is None:
        return False, [_NO_GOLDEN_RUNS]
    before = golden[0]["rule"]
    if any(known["rule"] == today for known in rule.same(results, before)):
        return True, [f"Rule {today} is known to give the results of rule {before}."]
    found = [_run(row["key"], load) for row in golden]
    worst, lines = _compare(golden, found, but_where)
    if worst is None:
        return False, [*lines, f"Every golden run has a {but_where}: nothing speaks for the rule."]
    if worst > TOLERANCE:
        return False, [
            *lines,
            f"Rule {today} gives other results than rule {before}: {worst:.2g} is more than {TOLERANCE}. "
            "Nothing is recorded. Train again (python -m benchmarks question ...), then make golden runs of this rule: "
            "python -m benchmarks vouch --renew",
        ]
    _record(results, golden[0], today, but_where)
    if but_where:
        results.set_note(_NOTE, lambda _: found)
    but = f" where no probe is a {but_where}" if but_where else ""
    return True, [
        *lines,
        f"Rule {today} gives the results of rule {before}{but}, and is recorded beside it in rules.json.",
    ]


def again(results: store.Store, load: Load) -> tuple[bool, list[str]]:
    """Trains the golden runs with today's rule, known or not: does this machine give the stored results?

    Returns:
      Whether no loss and no learning rate differs by more than `TOLERANCE`, and lines that say by how much they do.
    """
    golden = results.note(_NOTE) or []
    worst, lines = _compare(golden, [_run(row["key"], load) for row in golden], None)
    if worst is None:
        return False, [_NO_GOLDEN_RUNS]
    return worst <= TOLERANCE, [*lines, f"The golden runs differ from the stored ones by {worst:.2g} at most."]


def renew(results: store.Store, load: Load) -> list[str]:
    """Makes the golden runs with today's rule, in place of those that there are."""
    rows = [_run(key, load) for key in _keys(load)]
    results.set_note(_NOTE, lambda _: rows)
    return [f"{len(rows)} golden runs of rule {rule.fingerprint()} are stored."]


def _compare(
    golden: list[dict[str, Any]], found: list[dict[str, Any]], but_where: str | None
) -> tuple[float | None, list[str]]:
    """The largest difference between runs that must not differ, None where every run may; and a line for each run."""
    lines, compared = [], []
    for old, new in zip(golden, found, strict=True):
        apart = differences(old["curves"], new["curves"])
        said = ", ".join(f"{name} by {apart[name]:.2g}" for name in _COMPARED)
        lines.append(f"{old['key']['workload']}, {old['key']['method']}: differs in {said}")
        if but_where in old["statuses"]:
            lines[-1] += f", as it may: it has a {but_where}"
        else:
            compared.append(max(apart.values()))
    return max(compared, default=None), lines


def differences(stored: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """By how much of itself a point of each curve differs at most; infinite where only one of two is a number."""
    worst = {}
    for name in _COMPARED:
        one, other = (np.array(curves[name], float) for curves in (stored, found))
        if one.shape != other.shape or np.any(np.isfinite(one) != np.isfinite(other)):
            worst[name] = float("inf")
            continue
        both = np.isfinite(one)
        scale = np.maximum(np.maximum(np.abs(one), np.abs(other)), np.finfo(np.float32).tiny)
        worst[name] = float(np.max((np.abs(one - other) / scale)[both], initial=0.0))
    return worst


def _keys(load: Load) -> Iterator[dict[str, Any]]:
    for name, method, precision in GOLDEN:
        yield runner.cell_key(load(name), method, SEED, num_steps=NUM_STEPS, precision=precision)


def _run(key: dict[str, Any], load: Load) -> dict[str, Any]:
    cell = store.finite(runner.train(key, load(key["workload"])))
    about = {"rule": rule.fingerprint(), "date": _date(), **store.circumstances()}
    return {"key": key, "curves": cell["curves"], "statuses": cell["probes"]["statuses"], **about}


def _record(results: store.Store, golden: dict[str, Any], today: str, but_where: str | None) -> None:
    first = {name: golden.get(name) for name in ("rule", "commit", "date")}
    new = {"rule": today, "commit": store.circumstances()["commit"], "date": _date()}
    if but_where:
        new["but_where"] = but_where

    def added(note: dict[str, Any] | None) -> dict[str, Any]:
        groups = (note or {}).get("groups", [])
        known = [any(entry["rule"] == golden["rule"] for entry in group) for group in groups]
        if not any(known):
            return {"groups": [*groups, [first, new]]}
        return {"groups": [[*group, new] if is_ours else group for group, is_ours in zip(groups, known, strict=True)]}

    results.set_note(rule.NOTE, added)


def _date() -> str:
    return datetime.date.today().isoformat()
