"""Which rule a result is of: a fingerprint of the code that can change a training run by GeN.

    fingerprint()      # of the core as it is, such as "1f0c9b2a"
    today(results)     # the results without those of other rules

It is a hash over the syntax trees of the core's modules, so that docstrings, comments and layout do not change it, nor
does the version of Python. Every cell of a method that uses GeN keeps it, and so does every measurement. Fingerprints
that were seen to give the same results (`benchmarks.vouch`) count as one rule: `rules.json` lists them in groups, each
fingerprint with the first commit that had it.

A change may touch only what follows a probe of some status. Its fingerprint then joins the group with `but_where`, that
status, and older results count where it is known that none of their probes had it.
"""

import ast
import collections
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gen_optax
from benchmarks import store

CORE = Path(gen_optax.__file__).parent
# No training run of the suite goes through them.
_NOT_CORE = {"__init__", "_history", "_report", "_statistics", "demo", "linen", "nnx", "plot"}
# Controllers of others, written for the core.
_BESIDE_IT = Path(__file__).with_name("controllers.py")
FAMILIES = ("gen", "gen_horizon", "gen_paper", "gen_paper_horizon", "cdat", "lqa")
"""The method families that use GeN's core. All others are the same whatever the rule."""
COSTS = ("overhead", "scale")
"""Measurements of what calls cost, whatever a probe concludes."""
NOTE = "rules"
UNKNOWN = "unknown"
"""The rule of a result that names none."""


@functools.cache
def fingerprint(folder: Path = CORE) -> str:
    """Eight hexadecimal digits for the core in a folder, and the controllers of others.

    Example:
      >>> fingerprint() == fingerprint(CORE)
      True
    """
    digest = hashlib.sha256()
    for path in [*sorted(folder.glob("*.py")), _BESIDE_IT]:
        if path.stem not in _NOT_CORE:
            digest.update(f"{path.name}\n{shape(path.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:8]


def shape(source: str) -> str:
    r"""What a module does, without its words.

    Example:
      >>> shape("def f(x):\n    'Twice x.'\n    return 2 * x  # exact") == shape("def f(x): return 2*x")
      True
    """
    return _shape(ast.parse(source))


def _shape(node: Any) -> str:
    # `ast.dump` would depend on the version of Python: newer ones know more fields, and leave empty ones out.
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return (
            f"{type(node).__name__}({','.join(f'{name}={_shape(value)}' for name, value in fields if name != 'kind')})"
        )
    if isinstance(node, list):
        return f"[{','.join(_shape(entry) for entry in node if not _is_docstring(entry))}]"
    return repr(node)


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def depends(entry: Mapping[str, Any]) -> bool:
    """Whether a cell, or a measurement, could be another with another rule."""
    method = entry["key"].get("method")
    return method is None or method.partition(":")[0] in FAMILIES


def of(entry: Mapping[str, Any]) -> str | None:
    """The fingerprint that an entry keeps; `UNKNOWN` without one, None where none matters."""
    return (entry.get("rule") or UNKNOWN) if depends(entry) else None


def same(results: store.Store, name: str) -> list[dict[str, str]]:
    """The group of a fingerprint: `{"rule", "commit", "date"}` of each that gives the same results, the first first."""
    groups = (results.note(NOTE) or {}).get("groups", [])
    found = next((group for group in groups if any(known["rule"] == name for known in group)), None)
    return found or [{"rule": name}]


def same_as_today(results: store.Store) -> dict[str | None, frozenset[str]]:
    """The rules that give today's results, each with the statuses of probes after which its results may differ.

    None, for what depends on no rule, is among them.
    """
    today = fingerprint()
    group = same(results, today)
    names = [known["rule"] for known in group]

    def may_differ(place: int) -> frozenset[str]:
        first, last = sorted((place, names.index(today)))
        return frozenset(known["but_where"] for known in group[first + 1 : last + 1] if "but_where" in known)

    return {None: frozenset(), **{name: may_differ(place) for place, name in enumerate(names)}}


def is_today(results: store.Store, entry: Mapping[str, Any], note: str | None = None) -> bool:
    """Whether an entry, a cell or a row of a note, depends on no rule or is what the core as it is would give."""
    return _counts(same_as_today(results), entry, note)


def _counts(rules: Mapping[str | None, frozenset[str]], entry: Mapping[str, Any], note: str | None) -> bool:
    may_differ = rules.get(of(entry))
    if not may_differ or note in COSTS:
        return may_differ is not None
    statuses = (entry.get("probes") or entry).get("statuses")
    return statuses is not None and may_differ.isdisjoint(statuses)


def describe(results: store.Store, entries: Iterable[Mapping[str, Any]]) -> str:
    """A sentence on the rules of the entries behind a table; empty where they depend on none."""
    names = sorted({same(results, name)[0]["rule"] for entry in entries if (name := of(entry)) is not None})
    if not names:
        return ""
    if len(names) > 1:
        return f"**Of {len(names)} rules, which do not compare: {', '.join(names)}.**"
    first = same(results, names[0])[0]
    return f"Rule {names[0]}{f', commit {commit[:7]}' if (commit := first.get('commit')) else ''}."


def in_plain_words(results: store.Store, entries: Iterable[Mapping[str, Any]]) -> str:
    """The same for a reader who knows nothing of rules; empty where the entries depend on none."""
    names = {same(results, name)[0]["rule"] for entry in entries if (name := of(entry)) is not None}
    if len(names) != 1:
        return describe(results, entries)
    first = same(results, names.pop())[0]
    commit = first.get("commit")
    code = f"commit {commit[:7]}" if commit else f"fingerprint {first['rule']}"
    return (
        f"Measured with the code of {code}, or with code that gives the same results.\n"
        "`python -m benchmarks check` compares these numbers with the stored results."
    )


class Today(store.Store):
    """A view of results that leaves out what is of other rules than today's.

    Attributes:
      left_out: how many different entries have been left out of what was read so far.
    """

    def __init__(self, results: store.Store):
        super().__init__(results.root)
        self._rules = same_as_today(results)
        self._left_out: set[str] = set()

    @property
    def left_out(self) -> int:
        return len(self._left_out)

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        cell = super().find(key)
        return cell if cell is None or self._counts(cell) else None

    def cells(self, workload: str | None = None, family: str | None = None) -> Iterator[dict[str, Any]]:
        return filter(self._counts, super().cells(workload, family))

    def note(self, name: str) -> Any:
        note = super().note(name)
        if not isinstance(note, list):
            return note
        return [row for row in note if self._counts(row, name)] or None

    def _counts(self, entry: Mapping[str, Any], note: str | None = None) -> bool:
        if _counts(self._rules, entry, note):
            return True
        self._left_out.add(json.dumps(entry["key"], sort_keys=True))
        return False


def prune(results: store.Store) -> collections.Counter[str]:
    """Deletes every cell and measurement that is not of today's rule. Returns how many, by rule."""
    rules = same_as_today(results)
    removed: collections.Counter[str] = collections.Counter()

    def unwanted(entry: Mapping[str, Any], note: str | None = None) -> bool:
        if _counts(rules, entry, note):
            return False
        removed[of(entry) or UNKNOWN] += 1
        return True

    results.remove(unwanted)
    for name in results.measurements():
        results.set_note(name, lambda rows, name=name: [row for row in rows if not unwanted(row, name)] or None)
    return removed
