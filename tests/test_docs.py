"""The documentation site builds without a warning, and a reader who follows its links arrives."""

import html.parser
import os
import pathlib
import posixpath
import re
import subprocess
import sys
import urllib.parse

import matplotlib.pyplot as plt
import pytest

import gen_optax
import gen_optax.linen
import gen_optax.nnx
import gen_optax.plot
from gen_optax import demo

ROOT = pathlib.Path(__file__).parents[1]


class Page(html.parser.HTMLParser):
    """The anchors of a page and what it refers to."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.targets = {""}, []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        self.targets += [attrs[name] for name in ("href", "src") if attrs.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def pages(site):
    return {name: Page(path) for name, path in site.items() if name.endswith(".html") and name != "404.html"}


def local_targets(name, page):
    """The files of the site that a page refers to: as written, the path of the file, the anchor."""
    for target in page.targets:
        url = urllib.parse.urlsplit(target)
        if not (url.scheme or url.netloc):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), urllib.parse.unquote(url.path)))
            if not url.path:
                path = name
            elif not posixpath.splitext(path)[1]:
                path = posixpath.normpath(f"{path}/index.html")
            yield target, path, urllib.parse.unquote(url.fragment)


def test_every_link_and_picture_arrives(site, pages):
    broken = []
    for name, page in pages.items():
        for target, path, fragment in local_targets(name, page):
            if path not in site:
                broken.append(f"{name}: {target}")
            elif path in pages and fragment not in pages[path].anchors:
                broken.append(f"{name}: no anchor {target}")
    assert not broken


def test_no_page_leads_to_the_repository_for_what_is_on_the_site(pages):
    """The README links there, to be read elsewhere as well."""
    shown = re.compile(r"https://github\.com/gen-optax/gen_optax/blob/main/(docs|notebooks|benchmarks/results)/.+")
    targets = [target for page in pages.values() for target in page.targets]
    assert "https://github.com/gen-optax/gen_optax" in targets
    assert not [target for target in targets if shown.match(target)]


def test_every_page_can_be_reached_from_the_first(site, pages):
    reached, queue = {"index.html"}, ["index.html"]
    while queue:
        name = queue.pop()
        for _, path, _ in local_targets(name, pages[name]):
            if path in pages and path not in reached:
                reached.add(path)
                queue.append(path)
    assert reached == set(pages)


def test_every_guide_notebook_and_result_has_its_page(pages):
    expected = {f"guides/{path.stem}" for path in (ROOT / "docs" / "guides").glob("*.md")}
    expected |= {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    expected |= {
        f"benchmarks/{path.stem}" for path in (ROOT / "benchmarks" / "results").glob("*.md") if path.stem != "README"
    }
    assert {f"{name}/index.html" for name in expected} <= set(pages)


def public(module):
    """The names that are a module's own; those of the package are what it hands on."""
    own = "gen_optax." if module is gen_optax else module.__name__
    return {
        f"{module.__name__}.{name}"
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", "").startswith(own)
    }


@pytest.mark.parametrize(
    "module", [gen_optax, gen_optax.linen, gen_optax.nnx, gen_optax.plot], ids=lambda m: m.__name__
)
def test_every_public_name_is_in_the_api(module, pages):
    anchors = set().union(*(page.anchors for name, page in pages.items() if name.startswith("api/")))
    assert public(module)
    assert public(module) <= anchors


def test_formulas_are_drawn_when_the_site_is_built(site, pages):
    for name in ("how-it-works/index.html", "api/index.html"):
        text = site[name].read_text()
        assert 'class="formula"' in text
        assert "arithmatex" not in text
        assert ":math:" not in text


def test_a_phone_shows_tables_of_sentences_row_by_row(site):
    """Each cell has the heading of its column, for there it stands alone; not the first, nor one without a text."""
    text = site["guides/optax/index.html"].read_text()
    (table,) = re.findall(r'<div class="stacked"><table>(.*?)</table>', text, re.DOTALL)
    assert '<td data-heading="write"><code>gen(base, decay=schedule)</code></td>' in table
    assert "<td><code>MultiSteps</code></td>\n<td></td>" in table
    assert "stacked" not in site["benchmarks/quality/index.html"].read_text()


def test_pages_of_results_that_wait_say_so_in_the_list(site):
    page = site["benchmarks/index.html"].read_text()
    for path in (ROOT / "benchmarks" / "results").glob("*.md"):
        if link := re.search(rf'<a href="{path.stem}/">[^<]*</a>(.*)</li>', page):
            waits = "There is no result by today's rule yet." in path.read_text()
            assert ("not measured yet" in link[1]) == waits, path.name


def test_a_phone_scrolls_wide_pictures_only_and_says_so(site):
    assert '<a class="picture wide" href="assets/sweep.png"><img style="min-width:' in site["index.html"].read_text()
    kinds = re.findall(r'<a class="(picture.*?)"', site["notebooks/idea/index.html"].read_text())
    assert set(kinds) == {"picture", "picture wide"}


def test_no_page_needs_the_network(pages):
    # Links lead anywhere; what a page is made of comes with it.
    for name, page in pages.items():
        assert not [target for target in page.targets if target.endswith((".js", ".css")) and "//" in target], name


def test_the_picture_in_the_readme_is_one_of_the_demo():
    """In its size, and with what is said of it; what it shows is what the demo drew last."""
    height, width, _ = plt.imread(ROOT / "docs" / "assets" / "sweep.png").shape
    assert (width, height) == tuple(round(demo.DPI * size) for size in demo.SIZE)
    words = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
    for page in ("README.md", "docs/index.md"):
        text = " ".join((ROOT / page).read_text().split())
        assert f"{words[demo.SEEDS]} seeds" in text, page
        assert f"{words[len(demo.RATES)]} peak rates" in text, page
