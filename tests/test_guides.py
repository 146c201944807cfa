"""Every python block of the guides and of the pages of the site runs, the blocks of one page in one namespace."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ("index", "how-it-works", "when-it-does-not-work", "peers", "faq")
# The quick start: tests/test_quick_start.py.
SITE = [ROOT / "docs" / f"{name}.md" for name in NAMES]
GUIDES = ROOT / "docs" / "guides"
# The other pages of frameworks/ need the framework: tests/frameworks runs them.
PAGES = [*sorted(GUIDES.glob("*.md")), GUIDES / "frameworks" / "index.md", *SITE]
BLOCK = re.compile(r"(?:^<!-- needs: (\w+) -->\n)?^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
DEVICES = re.compile(r"<!--\s*devices:\s*(\d+)\s*-->")


def blocks(text: str) -> list[tuple[int, str]]:
    """The python blocks of a page, each with the number of its first line, but those that need what is not there."""
    found = [match for match in BLOCK.finditer(text) if match[1] is None or importlib.util.find_spec(match[1])]
    return [(text.count("\n", 0, match.start(2)), match[2]) for match in found]


def run_page(path: pathlib.Path) -> None:
    """Runs the blocks of a page; a traceback shows the lines of the page."""
    namespace = {"__name__": "__main__"}
    for line, block in blocks(path.read_text()):
        exec(compile("\n" * line + block, str(path), "exec"), namespace)


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path, monkeypatch):
    """For the files that a page writes."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page):
    text = page.read_text()
    assert blocks(text), "a guide shows code"
    devices = DEVICES.search(text)
    if devices is None:
        run_page(page)
        return
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices[1]}",
    }
    command = [sys.executable, "-W", "error", __file__, str(page)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_runner_sees_all_blocks_and_shares_their_names(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n```sh\nexit 1\n```\n\n```python\nassert x == 2\n```\n")
    assert blocks(page.read_text()) == [(3, "x = 1\n"), (11, "assert x == 2\n")]
    with pytest.raises(AssertionError) as raised:
        run_page(page)
    assert (raised.traceback[-1].path, raised.traceback[-1].lineno) == (page, 11)


def test_a_block_that_needs_what_is_not_there_is_left_out():
    text = "<!-- needs: {} -->\n```python\nx = 1\n```\n\n```python\ny = 2\n```\n"
    assert blocks(text.format("json")) == [(2, "x = 1\n"), (6, "y = 2\n")]
    assert blocks(text.format("no_such_tool")) == [(6, "y = 2\n")]


def test_a_page_gets_the_devices_that_it_asks_for(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- devices: 3 -->\n```python\nimport jax\nassert jax.device_count() == 3\n```\n")
    test_page(page)
    page.write_text("<!-- devices: 2 -->\n```python\nimport jax\nassert jax.device_count() == 3\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md.*line 4"):
        test_page(page)


if __name__ == "__main__":
    run_page(pathlib.Path(sys.argv[1]))
