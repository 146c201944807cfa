"""What the site takes from the rest of the repository, and its mathematics.

- CHANGELOG.md, CONTRIBUTING.md, notebooks and the pages and pictures of benchmarks/results become pages where they are;
  "Notebooks" and "Benchmarks" in the navigation list those that exist.
- `<!-- include README.md#Use -->` stands for a section of a file (`#` alone: its first paragraph; none: the whole of it
  without its title), with its links turned into those of the site.
- What stands between `<!-- where FILE -->` and `<!-- /where -->` is left out where that file does not exist.
- Formulas are drawn when the site is built: a page needs no script and no network to show them.
"""

import base64
import functools
import html
import itertools
import json
import logging
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import latex2mathml.converter
import ziamath
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIRST_NOTEBOOKS = ("quick_start", "idea", "diagnosing", "fine_tuning_lora", "devices")
_NO_RESULT = "There is no result by today's rule yet."  # on a page that `benchmarks report` wrote
OVERVIEW = RESULTS / "README.md"  # which `benchmarks report` writes: the pages in order, and the machine
# A minus that is a sign, not a difference: in braces it stands close to its number.
_SIGN = re.compile(r"(^|[=(,{&]|\\(?:q?quad|cdot|le|ge|[,;]))\s*-(?=\S)")
_NEARLY_A_PHONE = 440  # pixels: a picture that would be legible at this width is shrunk to the screen, not scrolled
_legible_widths: dict[str, int] = {}  # of pictures, in pixels: letters below some 9 pixels cannot be read
log = logging.getLogger("mkdocs.hooks")


def on_config(config: Any) -> Any:
    """Fills in the parts of the navigation that depend on what there is."""
    notebooks = [f"notebooks/{path.stem}.md" for path in _notebooks()]
    results = [{_name(path): f"benchmarks/{path.name}"} for path in _results()]
    parts = {"Notebooks": notebooks, "Benchmarks": ["benchmarks/index.md", *results]}
    nav = []
    for entry in config.nav:
        (title,) = entry
        pages = parts.get(title, entry[title])
        if pages:
            nav.append({title: pages})
    config.nav = nav
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages and pictures that lie outside of docs."""

    def add(uri: str, content: str | bytes) -> None:
        files.append(File.generated(config, uri, content=content))

    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        add(name.lower(), relink((ROOT / name).read_text(), name, name.lower()))
    for path in _results():
        origin, uri = f"benchmarks/results/{path.name}", f"benchmarks/{path.name}"
        text = relink(path.read_text(), origin, uri)
        # Tables are wide: without headings to list, they get the place of the list.
        add(uri, text if "\n## " in text else f"---\nhide: [toc]\n---\n\n{text}")
    for path in sorted(RESULTS.glob("*.png")):
        add(f"benchmarks/{path.name}", path.read_bytes())
        _legible_widths[path.name] = int(0.55 * _width(path.read_bytes()))  # 120 dots per inch
    for path in (ROOT / "docs" / "assets").glob("*.png"):
        width = _width(path.read_bytes())
        _legible_widths[path.name] = int(0.5 * width) if width > 1000 else 560
    for path in _notebooks():
        uri = f"notebooks/{path.stem}.md"
        text, pictures = notebook(json.loads(path.read_text()), path.stem)
        add(uri, text)
        for name, picture in pictures.items():
            add(f"notebooks/{name}", picture)
            _legible_widths[name] = int(0.72 * _width(picture))  # 80 dots per inch
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Puts the included sections and the list of results in their places."""

    def included(match: re.Match[str]) -> str:
        return relink(section(*match.groups()), match[1], page.file.src_uri)

    def kept(match: re.Match[str]) -> str:
        return match[2] if (ROOT / match[1]).exists() else ""

    markdown = re.sub(r"<!-- where ([\w./]+) -->\n(.*?)<!-- /where -->\n", kept, markdown, flags=re.DOTALL)
    markdown = re.sub(r"<!-- include ([\w./]+)(#[^>]*?)? -->", included, markdown)
    return markdown.replace("<!-- results -->", _list_of_results())


def on_page_content(html_text: str, page: Any, config: Any, files: Files) -> str:
    """Draws the formulas that arithmatex has marked; gives pictures and long cells a legible width."""

    def drawn(match: re.Match[str]) -> str:
        block = match[1] == "div"
        latex = " ".join(html.unescape(match[2]).strip()[2:-2].split())
        try:
            return formula(latex, block)
        except Exception as error:
            log.warning("%s: %r cannot be drawn: %s", page.file.src_uri, latex, error)
            return match[0]

    def picture(match: re.Match[str]) -> str:
        name = match[2].rsplit("/", 1)[-1]
        width = _legible_widths.get(name, 0)
        kind, style = ("picture", "") if width < _NEARLY_A_PHONE else ("picture wide", f' style="min-width:{width}px"')
        return f'<a class="{kind}" href="{match[2]}"><img{style} {match[1]}src="{match[2]}"{match[3]}></a>'

    html_text = re.sub(r'<(div|span) class="arithmatex">(.*?)</\1>', drawn, html_text, flags=re.DOTALL)
    html_text = re.sub(r'<img ([^>]*)src="([^"]+\.png)"([^>]*)>', picture, html_text)

    def cell(match: re.Match[str]) -> str:
        text = re.sub(r"<[^>]+>", "", match[1])
        return f'<td class="long">{match[1]}</td>' if len(text) > 45 else match[0]

    html_text = re.sub(r"<td>(.*?)</td>", cell, html_text, flags=re.DOTALL)
    if page.file.src_uri.startswith("benchmarks/"):  # tables of numbers
        return html_text
    return re.sub(r"<table>.*?</table>", _stacked, html_text, flags=re.DOTALL)


def _stacked(match: re.Match[str]) -> str:
    """A table with sentences and headings, which a phone shows row by row: each cell behind its heading."""
    table = match[0]
    headings = [re.sub(r"<[^>]+>", "", text).strip() for text in re.findall(r"<th\b[^>]*>(.*?)</th>", table, re.DOTALL)]
    if not any(headings) or 'class="long"' not in table:
        return table

    def row(found: re.Match[str]) -> str:
        of_column = iter(["", *headings[1:]])  # the first cell is the heading of the row

        def cell(opened: re.Match[str]) -> str:
            heading = next(of_column)
            label = f' data-heading="{html.escape(heading, quote=True)}"' if heading and opened[2].strip() else ""
            return f"<td{label}{opened[1]}>{opened[2]}</td>"

        return re.sub(r"<td\b([^>]*)>(.*?)</td>", cell, found[0], flags=re.DOTALL)

    table = re.sub(r"<tr>.*?</tr>", row, table, flags=re.DOTALL)
    return f'<div class="stacked">{table}</div>'


def formula(latex: str, block: bool) -> str:
    """A formula as SVG; one that stands by itself may break its line where it says qquad or allowbreak."""
    latex = _SIGN.sub(r"\1{-}", latex)
    parts = re.split(r"\\(qquad|allowbreak)\b", latex) if block else [latex]
    drawn = _svg(parts[0].strip(), block)
    for space, part in zip(parts[1::2], parts[2::2], strict=True):
        gap = '<span class="gap"></span>' if space == "qquad" else ""
        drawn += f"{gap}<wbr>{_svg(part.strip(), block)}"
    tag = "div" if block else "span"
    return f'<{tag} class="formula" role="math" aria-label="{html.escape(latex)}">{drawn}</{tag}>'


@functools.cache
def _svg(latex: str, block: bool) -> str:
    """In units of the text's size and in its colour."""
    ziamath.config.svg2 = False  # no ids, which would clash between the formulas of a page
    ziamath.config.precision = 2
    unknown = re.search(r">\\\w+<", latex2mathml.converter.convert(latex))
    if unknown:
        raise ValueError(f"unknown command {unknown[0][1:-1]}")
    size = 16
    drawing = ziamath.Latex(latex, size=size, color="currentColor", inline=not block)
    svg = drawing.svg()
    width, height, depth = *map(float, re.findall(r'(?:width|height)="([\d.]+)"', svg)[:2]), drawing.getyofst()
    em = 1.06 / size  # STIX is a little smaller than the fonts of screens
    style = f"width:{width * em:.3f}em;height:{height * em:.3f}em"
    if not block:
        style += f";vertical-align:{depth * em:.3f}em"
    return re.sub(
        r'(<svg [^>]*?) width="[\d.]+" height="[\d.]+"', rf'\1 style="{style}" aria-hidden="true"', svg, count=1
    )


def section(path: str, anchor: str | None) -> str:
    """A section of a file without its heading, its first paragraph, or all of it without its title."""
    text = (ROOT / path).read_text()
    body = text.split("\n", 1)[1].strip() if text.startswith("# ") else text
    if anchor is None:
        return body
    if anchor == "#":
        return body.split("\n\n", 1)[0]
    found = re.search(rf"^## {re.escape(anchor[1:])}\n(.*?)(?=^## |\Z)", body, re.MULTILINE | re.DOTALL)
    if found is None:
        raise PluginError(f"{path} has no section {anchor[1:]!r}; a page of docs includes it.")
    return found[1].strip()


def relink(text: str, origin: str, uri: str) -> str:
    """The Markdown of the file `origin` with its relative links as those of the page `uri`.

    What has no page of its own, source code or a result that is not there yet, keeps its text and loses its link.
    """

    def changed(match: re.Match[str]) -> str:
        mark, label, target, anchor = match.groups()
        if re.match(r"[a-z]+:", target) or not target:
            return match[0]
        known = _page_of(os.path.normpath(os.path.join(os.path.dirname(origin), target)))
        if known is None:
            return label
        return f"{mark}[{label}]({os.path.relpath(known, os.path.dirname(uri) or '.')}{anchor or ''})"

    parts = re.split(r"(^ *```.*?^ *```)", text, flags=re.MULTILINE | re.DOTALL)
    link = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
    return "".join(part if i % 2 else link.sub(changed, part) for i, part in enumerate(parts))


def _page_of(path: str) -> str | None:
    """The page or picture of the site that a file of the repository becomes."""
    fixed = {"README.md": "index.md", "benchmarks/README.md": "benchmarks/index.md"}
    fixed["benchmarks/results/README.md"] = "benchmarks/index.md"
    if not (ROOT / path).is_file():
        return None
    if path in fixed:
        return fixed[path]
    if path in ("CHANGELOG.md", "CONTRIBUTING.md"):
        return path.lower()
    for folder, prefix in (("docs/", ""), ("benchmarks/results/", "benchmarks/"), ("notebooks/", "notebooks/")):
        if path.startswith(folder) and path.endswith((".md", ".png", ".svg", ".ipynb")):
            return prefix + path.removeprefix(folder).replace(".ipynb", ".md")
    return None


def notebook(cells: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook that has been run, as the Markdown of a page and its pictures by file name."""
    parts, pictures = [], {}
    for cell in cells["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(relink(source, f"notebooks/{name}.ipynb", f"notebooks/{name}.md"))
        if cell["cell_type"] != "code" or not source:
            continue
        parts.append(f"```python\n{source}\n```")
        for kind, output in itertools.groupby(map(_best, cell["outputs"]), key=lambda best: best[0]):
            contents = ["".join(content) for _, content in output]
            if kind == "image/png":
                for content in contents:
                    pictures[f"{name}_{len(pictures) + 1}.png"] = base64.b64decode(content)
                    parts.append(f"![Drawn by the code above]({name}_{len(pictures)}.png)")
            elif kind == "text/html":
                parts += [f'<div class="output" markdown="0">{content}</div>' for content in contents]
            elif text := "\n".join(content.rstrip("\n") for content in contents).strip("\n"):
                parts.append(f"```{{.text .output}}\n{text}\n```")
    return "\n\n".join(parts) + "\n", pictures


def _best(output: dict[str, Any]) -> tuple[str, Any]:
    """The form of an output that a page shows best, and its content; what went to stderr is left out."""
    for kind in ("image/png", "text/html", "text/plain"):
        if kind in output.get("data", {}):
            return kind, output["data"][kind]
    return "text/plain", output["text"] if output.get("name") == "stdout" else ""


def _width(png: bytes) -> int:
    return int.from_bytes(png[16:20], "big")


def _notebooks() -> list[pathlib.Path]:
    return _in_order((ROOT / "notebooks").glob("*.ipynb"), FIRST_NOTEBOOKS)


def _results() -> list[pathlib.Path]:
    listed = re.findall(r"\((\w+)\.md\)", OVERVIEW.read_text()) if OVERVIEW.exists() else []
    return _in_order((path for path in RESULTS.glob("*.md") if path != OVERVIEW), listed)


def _in_order(paths: Any, first: Sequence[str]) -> list[pathlib.Path]:
    def place(path: pathlib.Path) -> tuple[int, str]:
        return first.index(path.stem) if path.stem in first else len(first), path.stem

    return sorted(paths, key=place)


def _name(path: pathlib.Path) -> str:
    return "All runs" if path.stem == "runs" else path.stem.replace("_", " ").capitalize()


def _list_of_results() -> str:
    """A link to every page of results under its title, and on what they were made; what waits for results says so."""
    if not OVERVIEW.exists():
        return "There are no results here yet; the commands below make them."

    def marked(link: re.Match[str]) -> str:
        page = RESULTS / link[1]
        waits = page.exists() and _NO_RESULT in page.read_text()
        return f"{link[0]} (not measured yet with the present version)" if waits else link[0]

    text = re.sub(r"^- \[.*\]\((.*)\)$", marked, section("benchmarks/results/README.md", None), flags=re.MULTILINE)
    return relink(text, "benchmarks/results/README.md", "benchmarks/index.md")
