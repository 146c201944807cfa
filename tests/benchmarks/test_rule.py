"""Fingerprints of the rule, and what becomes of results of other rules."""

import shutil

import jax
import pytest
from toy import toy

from benchmarks import methods, report, rule, runner, store

TODAY, TWIN, OTHER = "t0dayt0d", "tw1ntw1n", "0ther0th"


@pytest.fixture
def core(tmp_path):
    """A copy of the core."""
    return shutil.copytree(rule.CORE, tmp_path / "core", ignore=shutil.ignore_patterns("__pycache__"))


def edit(core, name, old, new):
    path = core / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    rule.fingerprint.cache_clear()
    return rule.fingerprint(core)


def test_code_changes_the_fingerprint_and_words_do_not(core):
    before = rule.fingerprint(core)
    assert before == rule.fingerprint()
    assert len(before) == 8
    text = (core / "_balance.py").read_text()
    first = text.index('"""')
    (core / "_balance.py").write_text(text[: first + 3] + "Other words. " + text[first + 3 :] + "\n# The end.\n")
    rule.fingerprint.cache_clear()
    assert rule.fingerprint(core) == before
    assert edit(core, "_balance.py", "import ", "import  ") == before  # layout
    assert edit(core, "plot.py", "import ", "import os\nimport ") == before
    assert edit(core, "_balance.py", "1.8", "1.7") != before


def test_a_new_module_changes_the_fingerprint(core):
    before = rule.fingerprint(core)
    (core / "_new.py").write_text("x = 1\n")
    rule.fingerprint.cache_clear()
    assert rule.fingerprint(core) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1  # one", "x = 1"),
        ('class A:\n    """Words."""\n    x: int = 0\n    """More."""', "class A:\n    x: int=0"),
        ("def f(x):\n    'Words.'\n    return (2 * x)", "def f(x): return 2*x"),
        ("u = u'a'", "u = 'a'"),
    ],
)
def test_words_and_layout_have_no_shape(one, other):
    assert rule.shape(one) == rule.shape(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("x = 1", "x = 1.0"), ("x = 1", "x = 2"), ("f(a=1)", "f(b=1)"), ("x = 'a'", "x = 'b'"), ("x = None", "x = ...")],
)
def test_code_has_a_shape(one, other):
    assert rule.shape(one) != rule.shape(other)


def test_the_shape_is_the_same_in_every_version_of_python():
    """Written out, since newer versions know fields that older ones do not."""
    assert rule.shape("def f(x, *, y=1) -> int:\n    return f'{x}' + y") == (
        "Module(body=[FunctionDef(name='f',args=arguments(args=[arg(arg='x')],kwonlyargs=[arg(arg='y')],"
        "kw_defaults=[Constant(value=1)]),body=[Return(value=BinOp(left=JoinedStr(values=[FormattedValue("
        "value=Name(id='x',ctx=Load()),conversion=-1)]),op=Add(),right=Name(id='y',ctx=Load())))],"
        "returns=Name(id='int',ctx=Load()))])"
    )


def test_the_families_that_depend_on_the_rule_are_those_that_use_gen():
    workload = toy()
    params = workload.init(jax.random.key(0))[0]
    settings = {"baseline": {"learning_rate": 0.1}}

    def uses_gen(family):
        method = methods.build(methods.Spec(family, settings.get(family, {})), workload, 10)
        state = jax.eval_shape(method.transformation.init, params)
        return any(map(runner.is_gen, jax.tree.leaves(state, is_leaf=runner.is_gen)))

    assert {family for family in methods.FAMILIES if uses_gen(family)} == set(rule.FAMILIES)


def entry(method, name=None, **key):
    return {"key": {"workload": "toy", "method": method, **key}, **({"rule": name} if name else {})}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Cells and measurements of two rules and of none."""
    monkeypatch.setattr(rule, "fingerprint", lambda *_: TODAY)
    results = store.Store(tmp_path)
    for cell in (entry("gen", TODAY), entry("gen:sigma=1", OTHER), entry("cdat"), entry("momo"), entry("lqa", TWIN)):
        results.put(cell)
    results.set_note("overhead", lambda _: [{"key": {"every": 1}, "rule": OTHER}, {"key": {"every": 2}, "rule": TODAY}])
    results.set_note("tuned", lambda _: {"toy": {}})
    return results


def of_methods(results):
    return {cell["key"]["method"] for cell in results.cells()}


def test_what_is_of_another_rule_is_left_out_and_counted(results):
    today = rule.Today(results)
    assert of_methods(today) == {"gen", "momo"}
    assert today.left_out == 3
    assert of_methods(today) == {"gen", "momo"}
    assert today.left_out == 3  # each once
    assert today.find(entry("gen")["key"])
    assert today.find(entry("gen:sigma=1")["key"]) is None
    assert [row["key"]["every"] for row in today.note("overhead")] == [2]
    assert today.note("tuned") == {"toy": {}}
    assert today.note("scale") is None
    assert today.left_out == 4


def test_a_rule_that_may_differ_after_a_status(results):
    """Older cells count where their probes are known never to have had it, and costs do in any case."""
    alike = [{"rule": "f1rst0ne"}, {"rule": TWIN}, {"rule": TODAY, "but_where": "jump"}]
    results.set_note(rule.NOTE, lambda _: {"groups": [alike]})
    for seed, statuses in enumerate([{"accepted": 9}, {"accepted": 9, "jump": 1}]):
        for name in ("f1rst0ne", TODAY):
            results.put({**entry("lqa", name, seed=seed, of=name), "probes": {"statuses": statuses}})
    today = rule.Today(results)
    kept = {(cell["key"]["of"], cell["key"]["seed"]) for cell in today.cells() if "of" in cell["key"]}
    assert kept == {("f1rst0ne", 0), (TODAY, 0), (TODAY, 1)}
    assert today.find(entry("lqa")["key"]) is None  # of its probes nothing is known
    rows = [{"key": {"every": 1}, "rule": TWIN}, {"key": {"every": 2}, "rule": TWIN, "statuses": {"ascent": 3}}]
    for name in ("overhead", "breakdown"):
        results.set_note(name, lambda _: rows)
    assert [row["key"]["every"] for row in today.note("overhead")] == [1, 2]
    assert [row["key"]["every"] for row in today.note("breakdown")] == [2]
    assert rule.is_today(results, rows[0], "overhead")
    assert not rule.is_today(results, rows[0])
    assert rule.prune(results) == {OTHER: 1, rule.UNKNOWN: 1, TWIN: 2, "f1rst0ne": 1}


def test_an_older_core_does_not_take_what_a_newer_one_gives_after_a_status(results):
    """The same group, looked at from the rule before."""
    alike = [{"rule": TODAY}, {"rule": TWIN, "but_where": "jump"}, {"rule": "n0th1ng0"}]
    results.set_note(rule.NOTE, lambda _: {"groups": [alike]})
    jumped = {**entry("lqa", TWIN), "probes": {"statuses": {"jump": 1}}}
    assert not rule.is_today(results, jumped)
    assert rule.is_today(results, {**jumped, "rule": TODAY})
    assert rule.is_today(results, {**jumped, "probes": {"statuses": {"ascent": 1}}})


def test_rules_that_give_the_same_results_are_one(results):
    results.set_note(rule.NOTE, lambda _: {"groups": [[{"rule": TWIN, "commit": "abcdef0123"}, {"rule": TODAY}]]})
    today = rule.Today(results)
    assert of_methods(today) == {"gen", "momo", "lqa"}
    entries = list(today.cells())
    assert rule.describe(results, entries) == f"Rule {TWIN}, commit abcdef0."
    assert rule.describe(results, [entry("momo")]) == ""
    assert rule.in_plain_words(results, entries).startswith("Measured with the code of commit abcdef0, or with code")
    assert rule.in_plain_words(results, [entry("momo")]) == ""
    assert "the code of fingerprint unknown," in rule.in_plain_words(results, [entry("lqa", None)])
    assert rule.in_plain_words(results, [entry("gen"), entry("lqa", OTHER)]).startswith("**Of 2 rules")


def test_a_table_of_several_rules_says_so(results):
    table = report.table_of(results, results.cells(), ["a"], [[1]])
    assert table.endswith(f"**Of 4 rules, which do not compare: {OTHER}, {TODAY}, {TWIN}, unknown.**")
    assert report.table_of(results, [entry("gen", TODAY)], ["a"], [[1]]).endswith(f"| 1 |\n\nRule {TODAY}.")
    assert report.table_of(results, [entry("momo")], ["a"], [[1]]).endswith("| 1 |")


def test_pruning(results):
    assert rule.prune(results) == {OTHER: 2, TWIN: 1, rule.UNKNOWN: 1}
    assert of_methods(results) == {"gen", "momo"}
    assert [row["key"]["every"] for row in results.note("overhead")] == [2]
    assert rule.prune(results) == {}
    monkey = store.Store(results.root)
    monkey.set_note("overhead", lambda _: [{"key": {}, "rule": OTHER}])
    rule.prune(monkey)
    assert monkey.note("overhead") is None
