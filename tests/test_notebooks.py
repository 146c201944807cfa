"""Every notebook under notebooks/ runs from top to bottom, and is stored as a reader wants to find it."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks.data.fetch import fetch

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE_PATH = re.compile(r"/(?:root|home|work|tmp|Users|usr|opt|mnt|private)/\w|[A-Z]:\\\\|site-packages|\.cache/")
TIMEOUT = 900  # seconds a notebook; about 30 on two cores that have nothing else to do

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: pathlib.Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def pictures(cell: dict) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def texts(cell: dict) -> list[str]:
    """All that a cell printed or returned, but for pictures."""
    bundles = [output["text"] for output in cell["outputs"] if output["output_type"] == "stream"]
    for output in cell["outputs"]:
        bundles += [data for kind, data in output.get("data", {}).items() if not kind.startswith("image/")]
    return ["".join(text) if isinstance(text, list) else str(text) for text in bundles]


def test_there_are_notebooks():
    assert NOTEBOOKS


@each
def test_stored(path):
    """Executed in order, without an error or a warning, with its pictures, and none too large to be shown."""
    assert path.stat().st_size < 1.5e6
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any(map(pictures, cells))
    for cell in cells:
        assert "error" not in [output["output_type"] for output in cell["outputs"]]
        assert "stderr" not in [output.get("name") for output in cell["outputs"]], texts(cell)
        if re.search(r"^plt\.show\(\)", source(cell), re.MULTILINE):
            assert pictures(cell), source(cell)
        assert max(map(len, source(cell).split("\n"))) <= 75, "a page would break the line"
        assert "execution" not in cell["metadata"], "times of the run: execute with record_timing=False"
        for text in [source(cell), *texts(cell)]:
            assert not MACHINE_PATH.search(text), text


@pytest.mark.slow
@each
def test_runs(path):
    """In a process of its own: what jupyter warns of is not ours, and a kernel ends with it."""
    needed = {name for cell in code_cells(path) for name in data_sets(source(cell))}
    if needed:
        try:
            fetch(sorted(needed))
        except RuntimeError as error:
            pytest.skip(f"no data: {error}")
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "MPLBACKEND")}
    done = subprocess.run(
        [sys.executable, __file__, str(path)],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    drawn = [pictures(cell) for cell in json.loads(done.stdout)["cells"] if cell["cell_type"] == "code"]
    assert drawn == [pictures(cell) for cell in code_cells(path)], "stored with other pictures than it draws"


def data_sets(code: str) -> list[str]:
    """The names in `fetch([...])`."""
    return [name for names in re.findall(r"^fetch\((\[.*?\])", code, re.MULTILINE) for name in ast.literal_eval(names)]


def test_data_sets_are_found():
    assert data_sets('x = 1\nfetch(["minilm", "letter"], say=print)') == ["minilm", "letter"]


def test_an_error_in_a_cell_fails(tmp_path):
    cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": []}
    notebook = {"cells": [cell | {"source": "assert 1 == 2"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path = tmp_path / "wrong.ipynb"
    path.write_text(json.dumps(notebook))
    with pytest.raises(AssertionError, match="1 == 2"):
        test_runs(path)


def execute(path: pathlib.Path) -> str:
    """The notebook as this interpreter executes it, whatever kernels are installed."""
    import nbclient
    import nbformat
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import KernelManager

    class ThisInterpreter(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    kernel = KernelManager(kernel_spec_manager=ThisInterpreter())
    client = nbclient.NotebookClient(
        notebook,
        km=kernel,
        timeout=TIMEOUT,
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    finally:
        if kernel.has_kernel:
            kernel.shutdown_kernel(now=True)
    return nbformat.writes(notebook)


if __name__ == "__main__":
    print(execute(pathlib.Path(sys.argv[1])))
