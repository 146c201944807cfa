"""From cells to pages: Markdown tables and PNGs beside the results, one page per question.

    report(results)      # writes <results>/<question>.md, the pictures, and README.md, which links to them

What is of another rule than today's is left out, and counted. Nothing else is: a method that diverged or failed has its
row, and ranks last.
"""

import contextlib
import contextvars
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from benchmarks import questions, rule, runner, store

# Okabe and Ito's palette, told apart with any colour vision; more curves than colours differ in their dashes.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
_COLOURS_IN_A_FILE = 96
_saves = contextvars.ContextVar("_saves", default=True)

Cells = Sequence[Mapping[str, Any]]


def report(results: store.Store) -> list[Path]:
    """Writes all pages and their pictures; deletes pictures that no page shows."""
    written = []
    for name, text in pages_of(results).items():
        written.append(results.root / name)
        written[-1].write_text(text)
    shown = "".join(path.read_text() for path in results.root.glob("*.md"))
    for path in results.root.glob("*.png"):
        if f"({path.name})" not in shown:
            path.unlink()
    return written


def pages_of(results: store.Store) -> dict[str, str]:
    """The page of every question that has results, of all runs, and an index, by file name. Draws their pictures."""
    pages, index = {}, []
    for name in questions.NAMES:
        module = questions.module(name)
        today = rule.Today(results)
        text = module.report(today)
        if text is not None or today.left_out:
            title, command = module.__doc__.split("\n")[0], f"python -m benchmarks question {name}"
            end = " ".join([f"`{command}` measures what is missing and writes this page.", *_left_out(today)])
            parts = [f"# {title}", text or "There is no result by today's rule yet.", "---", end]
            pages[f"{name}.md"] = "\n\n".join(parts) + "\n"
            index.append(f"- [{title}]({name}.md)")
    today = rule.Today(results)
    if any(today.cells()):
        text = _all_runs(today)
        pages["runs.md"] = "\n\n".join(["# Every training run", _RUNS, text, "---", *_left_out(today)]) + "\n"
        index.append("- [Every training run](runs.md)")
    if index:
        pages["README.md"] = "# Results\n\n" + "\n".join([*index, "", *_made_on(today)]) + "\n"
    return pages


NO_GEN = "There is no run of GeN by today's rule yet."
_RUNS = "Each line is a workload with a method, means and standard deviations over the seeds."


def opening(picture: str, sentences: Iterable[str]) -> str:
    """How a page begins: a picture, as Markdown, and what it shows in a few plain sentences."""
    return "\n\n".join(filter(None, [picture, " ".join(filter(None, sentences))]))


def listed(entries: Iterable[str]) -> str:
    """One or more entries in words: "a", "a and b", "a, b and c"."""
    *first, last = entries
    return f"{', '.join(first)} and {last}" if first else last


def beside(gain: float) -> str:
    """A gain in words: "3 % ahead", "12 % behind"; without a finite one a seed has failed."""
    if not math.isfinite(gain):
        return "lost with a seed that failed"
    return f"{number(abs(gain), 2)} % {'ahead' if gain >= 0 else 'behind'}"


def _left_out(today: rule.Today) -> list[str]:
    """A sentence on what was read and left out; none where nothing was."""
    if not today.left_out:
        return []
    entries = (
        "1 result of another rule than today's is"
        if today.left_out == 1
        else f"{today.left_out:,} results of other rules than today's are"
    )
    return [f"{entries} left out of this page."]


def table_of(
    results: store.Store, entries: Iterable[Mapping[str, Any]], header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> str:
    """A table, and under it the rule of the cells or measurements that it was made of."""
    return "\n\n".join(filter(None, [table(header, rows), rule.describe(results, entries)]))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table. Numbers are written with three significant digits."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(entry) for entry in line) + " |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """A number for readers; a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def mean_and_spread(values: Sequence[float], digits: int = 4) -> str:
    """The mean and the sample standard deviation; a dash where there are no values."""
    values = [value for value in values if value is not None and math.isfinite(value)]
    if not values:
        return "-"
    mean = number(float(np.mean(values)), digits)
    if len(values) == 1:
        return mean
    spread = 0.0 if min(values) == max(values) else float(np.std(values, ddof=1))  # not the rounding of the mean
    return f"{mean} ± {number(spread, 2)}"


def survivors(cells: Cells) -> list[Mapping[str, Any]]:
    """The cells that trained to their end."""
    return [cell for cell in cells if not cell["diverged"]]


def outcome(cells: Cells) -> str:
    """How many seeds there are, and how many of them failed and in which way."""
    errors = [cell["error"].split(":")[0] for cell in cells if cell.get("error")]
    diverged = sum(cell["diverged"] for cell in cells) - len(errors)
    parts = [f"{diverged} diverged"] if diverged else []
    parts += [f"{errors.count(error)} {error}" for error in sorted(set(errors))]
    return ", ".join([f"{len(cells)}", *parts])


def ranks(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Rank 1 for the least score of each column, equal scores sharing their mean rank, infinities at the end.

    Args:
      scores: `{row: {column: score}}`; a row without a score in a column is not ranked there.

    Returns:
      The same with ranks in place of scores.
    """
    ranked: dict[str, dict[str, float]] = {row: {} for row in scores}
    for column in dict.fromkeys(column for entries in scores.values() for column in entries):
        entries = {row: scores[row][column] for row in scores if column in scores[row]}
        for row, score in entries.items():
            below = sum(other < score for other in entries.values())
            equal = sum(other == score for other in entries.values())
            ranked[row][column] = below + (equal + 1) / 2
    return ranked


def performance_profile(costs: Mapping[str, Mapping[str, float]], taus: Sequence[float]) -> dict[str, list[float]]:
    """The share of columns on which a row's cost is within a factor tau of the least.

    Args:
      costs: `{row: {column: cost}}`, positive; infinite or missing: not solved. Columns solved by none do not count.
      taus: the factors, at least 1.

    Returns:
      `{row: [share at each tau]}`.
    """
    best: dict[str, float] = {}
    for entries in costs.values():
        for column, cost in entries.items():
            best[column] = min(cost, best.get(column, math.inf))
    solved = [column for column, cost in best.items() if math.isfinite(cost)]
    return {
        row: [float(np.mean([entries.get(c, math.inf) <= tau * best[c] for c in solved])) for tau in taus]
        for row, entries in costs.items()
        if solved
    }


@contextlib.contextmanager
def picture(
    path: Path, columns: int = 1, rows: int = 1, size: tuple[float, float] | None = None, **settings: Any
) -> Iterator[np.ndarray]:
    """A figure with `rows x columns` axes, saved to `path` at the end, but not within `no_pictures`.

    Its size in inches is that of the axes unless given. One of a single column can be read on a phone.
    """
    size = size or (5.2 * columns, 3.8 * rows)
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **settings)
        try:
            yield axes
            if _saves.get():
                path.parent.mkdir(parents=True, exist_ok=True)
                _save(figure, path)
        finally:
            plt.close(figure)


@contextlib.contextmanager
def no_pictures() -> Iterator[None]:
    """Pages made within leave the files of their pictures alone."""
    token = _saves.set(False)
    try:
        yield
    finally:
        _saves.reset(token)


def _save(figure: Any, path: Path) -> None:
    """As a small file: few colours are enough for lines and points. An unchanged picture is an unchanged file."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    with_few_colours(Image.open(drawn)).save(path, optimize=True, dpi=(120, 120))


def with_few_colours(image: Image.Image) -> Image.Image:
    """The same for a small file."""
    # Not by the median cut, which gives a line that is nearly hidden the colour of another one.
    few, method = _COLOURS_IN_A_FILE, Image.Quantize.FASTOCTREE
    return image.convert("RGB").quantize(few, method=method, dither=Image.Dither.NONE)


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of the curve of this index."""
    return {"color": COLOURS[index % len(COLOURS)], "ls": DASHES[index // len(COLOURS) % len(DASHES)]}


def grouped(cells: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Cells by what `key` says of them, in the order of their first appearance."""
    groups: dict[Any, list[Any]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups


def by_method(
    results: store.Store, workload: str, reported: bool = True, factor: float = 1
) -> dict[str, list[dict[str, Any]]]:
    """A workload's cells at its own batch size, `factor` times its own steps and in float32, by their method.

    Those of the seeds that are reported on, which have a test result, or those of all the others.
    """

    def counts(cell):
        key, own = cell["key"], cell["workload"]
        settings = (key["batch_size"], key["num_steps"], key["precision"])
        return (
            settings == (own["batch_size"], steps_at(own["num_steps"], factor), "float32")
            and runner.is_reported(key["seed"]) == reported
        )

    return grouped(filter(counts, results.cells(workload)), lambda cell: cell["key"]["method"])


def steps_at(num_steps: int, factor: float) -> int:
    """The length of a run `factor` times as long."""
    return max(1, round(factor * num_steps))


def mean_result(cells: Cells, name: str, split: str = "test") -> float:
    """A result, the mean over seeds, its sign turned where more is better; infinite if a seed failed."""
    if any(cell["diverged"] for cell in cells):
        return math.inf
    sign = -1 if name != "loss" and cells[0]["workload"]["higher_is_better"] else 1
    return sign * float(np.mean([cell["final"][split][name] for cell in cells]))


def gain(cells: Cells, baseline: Cells | None, split: str = "test") -> float | None:
    """The per cent by which the mean metric is better than the baseline's; None without one, or for a distance.

    Distances to a minimum span orders of magnitude. The gain is infinite where a seed of the baseline failed, and minus
    infinity where one of these did; 0 where both did.
    """
    metric = cells[0]["workload"]["metric"]
    if not baseline or metric == "distance":
        return None
    ours, theirs = (mean_result(group, metric, split) for group in (cells, baseline))
    if math.isinf(theirs):
        return 0.0 if math.isinf(ours) else math.inf
    return round(100 * (theirs - ours) / abs(theirs), 6) + 0.0  # not -1e-14


def gain_error(cells: Cells, baseline: Cells, split: str = "test") -> float:
    r"""The standard error of `gain`, from the spread over the seeds of both.

    With means :math:`m` and :math:`b` of the metric, and standard errors :math:`s_m` and :math:`s_b` of these, it is
    to first order

    .. math:: 100 \sqrt{s_m^2 + (m s_b / b)^2} / |b|.

    Returns:
      The error in per cent; NaN where a seed failed, or where either has fewer than two.
    """
    groups = (cells, baseline)
    if any(len(group) < 2 or len(survivors(group)) < len(group) for group in groups):
        return math.nan
    metric = cells[0]["workload"]["metric"]
    values = [[cell["final"][split][metric] for cell in group] for group in groups]
    (ours, theirs), (error, their_error) = zip(
        *((np.mean(entries), np.std(entries, ddof=1) / math.sqrt(len(entries))) for entries in values), strict=True
    )
    return float(100 * np.hypot(error, ours * their_error / theirs) / abs(theirs))


def gains(results: store.Store, compared: Mapping[str, Mapping[str, tuple[Cells, Cells]]], split: str = "test") -> str:
    """A table of each row's `gain` on every workload, and its worst.

    Args:
      results: where the cells are.
      compared: `{row: {workload: (cells, cells of the baseline)}}`.
      split: the one whose metric counts.
    """
    found: dict[str, dict[str, float]] = {}
    for row, pairs in compared.items():
        for workload, (cells, baseline) in pairs.items():
            value = gain(cells, baseline, split)
            if value is not None:
                found.setdefault(row, {})[workload] = value
    workloads = sorted({workload for entries in found.values() for workload in entries})
    note = "Per cent by which the mean metric is better (+) or worse (-) than that of the tuned baseline; "
    note += "-∞ where a seed diverged or failed."
    lines = [[row, min(entries.values()), *(entries.get(w) for w in workloads)] for row, entries in found.items()]
    entries = (cell for pairs in compared.values() for cells, _ in pairs.values() for cell in cells)
    return f"{note}\n\n{table_of(results, entries, ['', 'worst', *workloads], lines)}"


def _cell(entry: Any) -> str:
    text = entry if isinstance(entry, str) else number(entry)
    return text.replace("|", "\\|")


def _all_runs(results: store.Store) -> str:
    """Every training run there is, seeds taken together."""

    def kind(cell):
        key = cell["key"]  # by name: stored keys are in alphabetical order
        names = ("workload", "method", "batch_size", "num_steps", "precision")
        return (*(key[name] for name in names), runner.is_reported(key["seed"]))

    rows = []
    for (workload, method, batch_size, steps, precision, reported), cells in grouped(results.cells(), kind).items():
        splits = ["validation", "test"] if reported else ["validation"]
        metric = cells[0]["workload"]["metric"]
        values = [[cell["final"][split][metric] for cell in survivors(cells)] for split in splits]
        rows.append(
            [workload, method, batch_size, steps, precision, outcome(cells), metric]
            + [mean_and_spread(value) for value in values]
            + [""] * (2 - len(values))
            + [mean_and_spread([cell["final"]["train_loss"] for cell in survivors(cells)])]
        )
    header = ["workload", "method", "batch size", "steps", "precision", "seeds", "metric"]
    header += ["validation", "test", "training loss"]
    return table_of(results, results.cells(), header, sorted(rows, key=lambda row: row[:5]))


def _made_on(results: store.Store) -> list[str]:
    """A line on each kind of machine and set of versions behind the training runs."""
    facts = {tuple({**cell["machine"], **cell["versions"]}.items()) for cell in results.cells()}
    lines = [", ".join(f"{name} {value}" for name, value in fact) for fact in facts]
    return ["Training runs were made on:", "", *(f"- {line}." for line in sorted(lines))] if lines else []
