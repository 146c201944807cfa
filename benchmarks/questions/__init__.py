"""The questions that the suite answers, a module each.

A module has `run(study)`, which measures what is not measured yet, and `report(results)`, which turns what has been
measured into a page and pictures, or returns None where there is nothing so far. Its first line says what it asks.
"""

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from benchmarks import methods, rule, runner, store
from benchmarks.workload import Workload

NAMES = (
    "quality",
    "paper",
    "defaults",
    "overhead",
    "sensitivity",
    "batch_size",
    "breakdown",
    "robustness",
    "precision",
    "scale",
    "authors",
    "trajectories",
)


def module(name: str) -> ModuleType:
    """The module of a question; nothing is imported before it is asked for."""
    if name not in NAMES:
        raise ValueError(f"Unknown question {name!r}. Known: {', '.join(NAMES)}.")
    return importlib.import_module(f"benchmarks.questions.{name}")


@dataclass(frozen=True)
class Study:
    """What a question is asked on.

    Attributes:
      results: where finished cells are found and new ones go.
      load: a workload by its name.
      workloads: names; empty for the question's own choice.
      seeds: those to report on.
      tiny: everything as small as it can be, to see that it works.
    """

    results: store.Store
    load: Callable[[str], Workload]
    workloads: tuple[str, ...] = ()
    seeds: tuple[int, ...] = runner.SEEDS
    tiny: bool = False

    def chosen(self, default: Iterable[str]) -> list[Workload]:
        """The workloads to study."""
        return [self.load(name) for name in self.workloads or default]

    def train(self, workload: Workload, specs: Sequence[methods.Spec | str], **settings: Any) -> list[dict[str, Any]]:
        """The cells of some methods on all seeds; `settings` are those of `runner.cell_key`."""
        keys = [runner.cell_key(workload, spec, seed, **settings) for spec in specs for seed in self.seeds]
        return runner.run_all(keys, workload, self.results)

    def measure(self, name: str, key: dict[str, Any], measurement: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A row of the note `name`, which is a list: the one of this key, or measured now and added.

        One of another rule than today's is measured again, and replaced.
        """
        row = next((row for row in self.results.note(name) or [] if row["key"] == key), None)
        if row is None or not rule.is_today(self.results, row, name):
            row = store.finite({"key": key, **measurement(), **store.circumstances()})
            if rule.depends(row):
                row["rule"] = rule.fingerprint()
            self.results.set_note(name, lambda rows: [*(old for old in rows or [] if old["key"] != key), row])
        return row
