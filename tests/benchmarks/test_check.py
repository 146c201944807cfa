"""The check of the documents: green on the tree as it is, red where a number or the rule is another."""

import random
import re
import shutil

import pytest

from benchmarks import __main__ as command_line
from benchmarks import check, claims, picture, report, rule, store

TODAY = "t0dayt0d"
FINGERPRINT = rule.fingerprint.__wrapped__


@pytest.fixture(scope="module")
def results():
    return store.Store(store.RESULTS)


@pytest.fixture
def tree(tmp_path):
    """A copy of the documents."""
    for path in check.documents_in(check.ROOT):
        copy = tmp_path / path.relative_to(check.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return tmp_path


def test_the_tree_as_it_is(results):
    assert list(check.faults(results)) == []


@pytest.mark.parametrize(("name", "least", "changed"), [("README.md", 100, 6), ("benchmarks/STUDY.md", 50, 4)])
def test_a_digit_of_the_evidence(results, tree, name, least, changed):
    """Any of it, some of them here: of a table, of a sentence, or of none."""
    document = tree / name
    text = document.read_text()
    (marked,) = re.finditer(r"<!-- evidence -->.*<!-- /evidence -->", text, re.DOTALL)
    names = [match.span() for match in check._NO_NUMBER.finditer(text)]
    digits = [
        match.start()
        for match in re.compile(r"\d").finditer(text, *marked.span())
        if not any(begin <= match.start() < end for begin, end in names)
    ]
    assert len(digits) > least
    own = [claim for claim in claims.CLAIMS if claim.file == name]
    for place in random.Random(0).sample(digits, changed):
        other = str((int(text[place]) + 1) % 10)
        document.write_text(text[:place] + other + text[place + 1 :])
        faults = [fault for fault in check.document_faults(results, tree, own) if fault.startswith(f"{name}:")]
        line = text.count("\n", 0, place) + 1
        assert faults, f"line {line}: {text[place - 20 : place + 20]!r}"
        assert all(re.match(rf"{re.escape(name)}:\d+: stands ", fault) for fault in faults)


def test_the_study_is_short():
    assert len((check.ROOT / "benchmarks" / "STUDY.md").read_text().split()) <= 1500


def test_the_picture_of_the_readme_is_of_a_rule(results, tmp_path, monkeypatch):
    assert list(picture.faults(results)) == []
    monkeypatch.setattr(rule, "fingerprint", lambda *_: "0ther0th")
    (fault,) = check.picture.faults(results)
    assert fault.endswith("and today's is 0ther0th. python -m benchmarks sweep")
    kept = tmp_path / picture.NAME
    kept.parent.mkdir(parents=True)
    picture.keep(check.ROOT / picture.NAME, kept)
    assert list(picture.faults(results, tmp_path)) == []
    monkeypatch.setattr(rule, "fingerprint", lambda *_: TODAY)
    (fault,) = picture.faults(results, tmp_path)
    assert fault.startswith("docs/assets/sweep.png:1: is drawn by rule 0ther0th, ")


def test_a_core_whose_code_is_another(results, tree, tmp_path, monkeypatch):
    core = shutil.copytree(rule.CORE, tmp_path / "core", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(rule, "fingerprint", lambda *_: FINGERPRINT(core))
    module = core / "_balance.py"
    text = module.read_text()
    module.write_text(text.replace('"""', '"""Other words. ', 1) + "\n# And more.\n")
    assert list(check.document_faults(results, tree)) == []
    module.write_text(text + "\nx = 1\n")
    faults = list(check.document_faults(results, tree))
    assert any("README.md" in fault and "python -m benchmarks vouch" in fault for fault in faults)
    assert len(faults) >= 5


def numbers(results):
    cells = list(results.cells("toy"))
    return {"count": str(len(cells)), "list": "`a1` (0.97 and 2.5), `b` (1 and 2)"} if cells else None


SENTENCE = claims.Sentence("README.md", "There are {count} cells, {list}.", numbers, "python -m benchmarks run")
BLOCK = claims.Block(
    "README.md",
    "toy",
    lambda results: f"| {len(list(results.cells()))} |" if any(results.cells()) else None,
    "python -m benchmarks run",
)
README = """# Toy

<!-- begin toy -->

| 2 |

<!-- end toy -->

<!-- evidence -->
Words. There are 2
cells, `a1` (0.97 and
2.5), `b` (1 and 2). More in [a table](results/page2.md#part-2) of float32 and `word2vec_moby`.
<!-- /evidence -->

There are 3 parts.
"""


@pytest.fixture
def toy_tree(tmp_path, monkeypatch):
    """A README with two claims, and two cells of today's rule."""
    monkeypatch.setattr(rule, "fingerprint", lambda *_: TODAY)
    results = store.Store(tmp_path / "results")
    for seed in (1, 2):
        results.put({"key": {"workload": "toy", "method": "gen", "seed": seed}, "rule": TODAY})
    (tmp_path / "README.md").write_text(README)
    return results, tmp_path


def faults_of(toy_tree, *replacements):
    results, root = toy_tree
    text = README
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    (root / "README.md").write_text(text)
    return list(check.document_faults(results, root, (BLOCK, SENTENCE)))


def test_all_is_well(toy_tree):
    assert faults_of(toy_tree) == []


def test_a_number_that_differs(toy_tree):
    (fault,) = faults_of(toy_tree, ("0.97", "0.98"))
    assert fault.startswith(
        'README.md:10: stands "There are 2 cells, `a1` (0.98 and 2.5), `b` (1 and 2).". The results say'
    )
    assert '"There are 2 cells, `a1` (0.97 and 2.5), `b` (1 and 2).".' in fault
    assert fault.endswith("python -m benchmarks check --write")


def test_a_table_that_differs(toy_tree):
    (fault,) = faults_of(toy_tree, ("| 2 |", "| 3 |"))
    assert fault == 'README.md:5: stands "| 3 |". The results say "| 2 |". python -m benchmarks check --write'
    (fault,) = faults_of(toy_tree, ("<!-- end toy -->", ""))
    assert "the table toy is missing" in fault


def test_a_sentence_that_is_missing(toy_tree):
    (fault,) = faults_of(toy_tree, ("There are 2\ncells, `a1` (0.97 and\n2.5), `b` (1 and 2).", ""))
    assert fault.startswith('README.md:1: the sentence "There are 2 cells,')


def test_a_number_without_a_claim(toy_tree):
    (fault,) = faults_of(toy_tree, ("Words.", "Words, 16 of them."))
    assert fault.startswith("README.md:10: stands 16, which is of no claim.")
    assert faults_of(toy_tree, ("There are 3 parts.", "There are 4 parts.")) == []  # not marked


def test_results_of_another_rule(toy_tree, monkeypatch):
    monkeypatch.setattr(rule, "fingerprint", lambda *_: "0ther0th")
    table, sentence = faults_of(toy_tree)
    assert table.startswith("README.md:3: the table toy stands. No result of today's rule, 0ther0th, says it.")
    assert sentence.startswith('README.md:10: stands "There are 2 cells,')
    assert "No result of today's rule, 0ther0th, says it." in sentence
    assert sentence.endswith("python -m benchmarks vouch; or else: python -m benchmarks run")
    results, root = toy_tree
    assert check.write(results, root, (BLOCK, SENTENCE)) == []  # what stands is not overwritten with nothing
    without = ("There are 2\ncells, `a1` (0.97 and\n2.5), `b` (1 and 2).", ""), ("| 2 |", "")
    assert faults_of(toy_tree, *without) == []


def test_numbers_are_put_in(toy_tree):
    results, root = toy_tree
    assert faults_of(
        toy_tree, ("There are 2", "There are 12"), ("| 2 |", "| 7 |\n| 8 |"), ("0.97 and\n2.5", "1 and\n2")
    )
    assert check.write(results, root, (BLOCK, SENTENCE)) == [root / "README.md"]
    assert list(check.document_faults(results, root, (BLOCK, SENTENCE))) == []
    text = (root / "README.md").read_text()
    assert "Words. There are 2\ncells, `a1` (0.97 and 2.5), `b` (1 and 2). More" in text  # other lines are as they were
    assert check.write(results, root, (BLOCK, SENTENCE)) == []


def test_a_page_that_is_not_what_report_would_write(toy_tree):
    results, root = toy_tree
    results.remove(lambda cell: True)
    results.set_note("scale", lambda _: [{"key": {"devices": 8}}])
    report.report(results)
    assert list(check.page_faults(results, root)) == []
    page = results.root / "scale.md"
    page.write_text(page.read_text().replace("There is no", "There is a"))
    (fault,) = check.page_faults(results, root)
    assert fault.startswith('results/scale.md:3: stands "There is a result')
    assert fault.endswith("python -m benchmarks report")


def test_command_line(toy_tree, monkeypatch, capsys):
    results, _ = toy_tree
    monkeypatch.setattr(check, "faults", lambda *_: iter(["README.md:1: a fault"]))
    with pytest.raises(SystemExit) as status:
        command_line.main(["check", "--results", str(results.root)])
    assert status.value.code == 1
    assert "README.md:1: a fault" in capsys.readouterr().out
    monkeypatch.setattr(check, "faults", lambda *_: iter([]))
    command_line.main(["check", "--results", str(results.root)])
    monkeypatch.setattr(rule, "fingerprint", lambda *_: "0ther0th")
    command_line.main(["prune", "--results", str(results.root)])
    assert f"2 results of rule {TODAY} are deleted." in capsys.readouterr().out
    assert not list(results.cells())


def test_results_are_light():
    files = [path for path in store.RESULTS.rglob("*") if path.is_file()]
    assert len(files) <= 60
    assert sum(path.stat().st_size for path in files) <= 3e6
    pages = "".join(path.read_text() for path in store.RESULTS.glob("*.md"))
    assert [path.name for path in store.RESULTS.glob("*.png") if f"({path.name})" not in pages] == []


def test_curves_are_light():
    for cell in store.Store(store.RESULTS).cells():
        assert len(cell.get("curves", {"step": []})["step"]) <= store.CURVE_POINTS
