"""What a release uploads, says of itself and promises to those who install it."""

import ast
import email
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile

import pytest
import trove_classifiers
import yaml
from packaging.version import Version

import gen_optax

ROOT = pathlib.Path(__file__).parents[1]
REPOSITORY = "https://github.com/gen-optax/gen_optax"
IN_REPOSITORY = (
    r"https://(?:github|raw\.githubusercontent)\.com/gen-optax/gen_optax/(?:(?:blob|raw|tree)/)?main/([\w./-]+)"
)
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())
CI = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
COMMANDS = sorted(path.name for path in (ROOT / ".ci").iterdir() if path.name != "python3.13")
FENCED = re.compile(r"^ *(```+)[^\n]*\n(.*?)^ *\1", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source distribution and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def source(archives):
    """The names of the files in the source distribution."""
    with tarfile.open(archives[0]) as files:
        return {name.split("/", 1)[1] for name in files.getnames()}


def test_the_source_distribution_is_lean(archives, source):
    assert archives[0].stat().st_size < 300_000
    assert {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "tests/conftest.py"} <= source
    assert {f"gen_optax/{path.name}" for path in (ROOT / "gen_optax").glob("*.py")} <= source
    assert not [name for name in source if re.match(r"(benchmarks|examples|notebooks|site|\.ci)\b", name)]


def test_its_tests_import_only_what_comes_with_it(source):
    helpers = {path.stem for path in (ROOT / "tests").iterdir()} | {"benchmarks", "examples"}
    for name in sorted(source):
        if re.fullmatch(r"tests/\w+\.py", name):
            for node in ast.walk(ast.parse((ROOT / name).read_text())):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module] if isinstance(node, ast.ImportFrom) else []
                own = {module.split(".")[0] for module in modules} & helpers
                assert {f"tests/{module}.py" for module in own} <= source, name


def test_the_wheel_is_the_package_with_its_types(archives):
    with zipfile.ZipFile(archives[1]) as files:
        names = files.namelist()
    assert "gen_optax/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"gen_optax", f"gen_optax-{gen_optax.__version__}.dist-info"}


def test_the_metadata_says_who_where_and_for_what(archives):
    with zipfile.ZipFile(archives[1]) as files:
        name = next(name for name in files.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(files.read(name))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "The gen_optax authors"
    urls = dict(entry.split(", ") for entry in metadata.get_all("Project-URL"))
    assert urls["Homepage"] == REPOSITORY
    classifiers = set(metadata.get_all("Classifier"))
    assert classifiers <= trove_classifiers.classifiers
    # Each version of Python is one that a command of .ci sets up.
    scripts = "".join((ROOT / ".ci" / name).read_text() for name in COMMANDS)
    tested = set(re.findall(r"\bpython(3\.\d+)\b", scripts))
    assert {name.rsplit(" ", 1)[1] for name in classifiers if re.search(r":: 3\.\d+$", name)} == tested


def test_every_place_names_the_same_version_and_day():
    version, day = re.search(r"^## \[(.+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).groups()
    assert gen_optax.__version__ == PROJECT["version"] == CITATION["version"] == version
    assert str(CITATION["date-released"]) == day
    assert f"version={{{version}}}" in (ROOT / "docs" / "cite.md").read_text()


def test_the_readme_names_the_versions_that_are_tested():
    """Those pinned in .ci/oldest, and the bounds of .ci/newest."""
    pins = [
        dict(re.findall(r"^([\w-]+)[=>]=([\d.]+)$", (ROOT / "tests" / f"{name}.txt").read_text(), re.MULTILINE))
        for name in ("oldest", "newest")
    ]
    said = re.search(r"^Tested with jax (\S+) and (\S+), optax (\S+) and (\S+)\.", README, re.MULTILINE).groups()
    expected = [pin[name] for name in ("jax", "optax") for pin in pins]
    assert list(map(Version, said)) == list(map(Version, expected))


def test_the_page_on_citing_says_what_the_citation_file_does():
    paper, page = CITATION["preferred-citation"], (ROOT / "docs" / "cite.md").read_text()
    article = re.search(r"^@inproceedings.*?^}", page, re.MULTILINE | re.DOTALL)[0]
    fields = dict(re.findall(r"^  (\w+)=\{(.+)\},?$", article, re.MULTILINE))
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert fields["author"] == authors
    assert re.sub("[{}]", "", fields["title"]) == paper["title"]
    assert (fields["booktitle"], int(fields["year"])) == (paper["collection-title"], paper["year"])
    assert paper["url"] in page
    assert CITATION["repository-code"] == REPOSITORY


def relative(text):
    """The links and pictures of a text in Markdown that need the folder it lies in."""
    prose = FENCED.sub("", text)
    targets = re.findall(
        r"\]\(\s*<?([^)\s>]+)|^\[[^\]]+\]:\s*(\S+)|(?:href|src|srcset)=\"([^\"]+)", prose, re.MULTILINE
    )
    return [target for found in targets for target in found if target and not re.match(r"https://|#", target)]


def test_the_links_of_the_readme_work_on_an_index_page():
    assert relative('[a](b.md) ![c](d.png)\n[e]: f\n<img src="g"> [h](https://i) [j](#k)') == [
        "b.md",
        "d.png",
        "f",
        "g",
    ]
    assert not relative(README)


def test_what_pages_name_in_the_repository_is_there():
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(IN_REPOSITORY, text):
            assert (ROOT / path).exists(), f"{page.relative_to(ROOT)}: {path}"
        assert set(re.findall(r"github\w*\.com/(gen[-_]optax/[\w-]+)", text)) <= {"gen-optax/gen_optax"}


def test_no_page_cuts_code_off():
    """At most 75 columns."""
    for page in PAGES:
        for _, block in FENCED.findall(page.read_text()):
            wide = [line for line in block.splitlines() if len(line) > 75]
            assert not wide, page.relative_to(ROOT)


def test_what_is_to_be_installed_is_there():
    """Until there is a release on an index, the repository is named beside the package."""
    texts = [page.read_text() for page in PAGES]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        texts += ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    lines = [line for text in texts for line in re.findall(r"pip3? install .*gen[-_]optax.*", text)]
    assert lines
    assert all(f"git+{REPOSITORY}" in line for line in lines)


def test_the_import_adds_nothing_heavy_to_jax_and_optax():
    code = """
        import sys, jax, optax
        before = set(sys.modules)
        import gen_optax
        print(*(set(sys.modules) - before))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    added = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert {name.split(".")[0] for name in added} <= {"gen_optax", "jax", "optax", "numpy", *sys.stdlib_module_names}
    assert "gen_optax" in added
    assert len(added) < 100  # modules, some 55 today


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_a_type_checker_knows_the_installed_package(archives, tmp_path):
    """In a script of a user, in strict mode: what is right passes, and a misspelt argument is an error."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "user")], check=True)
    (packages,) = (tmp_path / "user").glob("lib/python*/site-packages")
    zipfile.ZipFile(archives[1]).extractall(packages)
    # jax and optax, which take minutes to read, are not there.
    missing = "".join(f"[mypy-{name}.*]\nignore_missing_imports = true\n" for name in ("jax", "numpy", "optax"))
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\n{missing}")
    right = """
        import jax
        import jax.numpy as jnp
        import optax

        import gen_optax


        def loss_fn(params: jax.Array, batch: jax.Array) -> jax.Array:
            return jnp.mean((params * batch - 1.0) ** 2)


        tx = gen_optax.gen(optax.adamw(1.0), num_steps=10)
        params, batch = jnp.zeros(3), jnp.ones(3)
        state = tx.init(params)
        value, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn, batch=batch)
        rate: jax.Array = gen_optax.metrics(state)["learning_rate"]
    """
    wrong = """
        import optax

        import gen_optax

        gen_optax.gen(optax.adamw(1.0), nums_steps=10)
        gen_optax.metrics()
    """
    (tmp_path / "right.py").write_text(textwrap.dedent(right))
    (tmp_path / "wrong.py").write_text(textwrap.dedent(wrong))
    python = tmp_path / "user" / "bin" / "python"
    command = [sys.executable, "-m", "mypy", "--python-executable", str(python), "right.py", "wrong.py"]
    report = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    errors = [line for line in report.splitlines() if ": error: " in line]
    assert [line.split(": error: ")[0] for line in errors] == ["wrong.py:6", "wrong.py:7"], report
    assert "nums_steps" in errors[0]


def steps():
    """Each step of the workflow, with the name of its job."""
    return [(name, step) for name, job in CI["jobs"].items() for step in job["steps"]]


def test_the_workflow_runs_every_command():
    """All but the one that others call; a program of that name is there, and CONTRIBUTING says what it is for."""
    commands = {*CI["jobs"]["check"]["strategy"]["matrix"]["command"], *(step.get("run") for _, step in steps())}
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for name in COMMANDS:
        assert any(command and command.split()[0] == f".ci/{name}" for command in commands), name
        assert (ROOT / ".ci" / name).stat().st_mode & 0o111
        assert f"`.ci/{name}" in contributing


def test_only_a_tag_that_passed_is_published_and_by_no_password():
    publishes = re.compile(r"pypi-publish|twine upload|hatch publish|uv publish")
    uses = [(name, step) for name, step in steps() if publishes.search(str(step))]
    assert [name for name, _ in uses] == ["publish"]
    job = CI["jobs"]["publish"]
    assert set(job["needs"]) == set(CI["jobs"]) - {"publish"}
    assert "startsWith(github.ref, 'refs/tags/v')" in job["if"]
    assert job["permissions"] == {"id-token": "write"}
    assert CI["permissions"] == {"contents": "read"}
    for path in [*WORKFLOWS, *(ROOT / ".ci").iterdir()]:
        assert "secrets." not in path.read_text()
        assert path.name == "ci.yml" or not publishes.search(path.read_text())
