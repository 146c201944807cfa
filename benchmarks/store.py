"""Where results live: one file of compressed lines per workload, a line for each cell.

A cell is known by what was asked for (workload, method, seed, batch size, steps, precision), so that a run that was
interrupted goes on where it stopped. A file is replaced whole or not at all, and the same cells are the same bytes,
whatever the order in which they came.
"""

import contextlib
import fcntl
import gzip
import importlib.metadata
import io
import itertools
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"
TINY_RESULTS = Path("build") / "benchmarks-tiny"
CURVE_POINTS = 20
"""How many points of a curve are kept: each is the mean over a twentieth of the run."""

_PACKAGES = ("gen-optax", "jax", "jaxlib", "optax", "flax", "numpy")
_LINES = ".jsonl.gz"
_MEASUREMENTS, _NAME = f"measurements{_LINES}", "measurement"


class Store:
    """The results under one folder. What it returns is not to be changed in place."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self._known: dict[Path, tuple[Any, list[dict[str, Any]]]] = {}

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The finished cell of this key. One that raised an error is not finished."""
        for cell in self._read(self._path(key["workload"])):
            if cell["key"] == key and cell.get("error") is None:
                return cell
        return None

    def put(self, cell: dict[str, Any]) -> None:
        """Adds a cell, its curves made light, in place of one with the same key."""
        path = self._path(cell["key"]["workload"])
        path.parent.mkdir(parents=True, exist_ok=True)
        cell = finite(light(cell))
        with _locked(path.parent):
            _write_lines(path, [*(other for other in self._read(path) if other["key"] != cell["key"]), cell])

    def remove(self, unwanted: Callable[[dict[str, Any]], bool]) -> int:
        """Deletes cells; a file without any goes, too. Returns how many there were."""
        removed = 0
        for workload in self.workloads():
            path = self._path(workload)
            with _locked(path.parent):
                cells = self._read(path)
                kept = [cell for cell in cells if not unwanted(cell)]
                removed += len(cells) - len(kept)
                if not kept:
                    path.unlink()
                elif len(kept) < len(cells):
                    _write_lines(path, kept)
        return removed

    def cells(self, workload: str | None = None, family: str | None = None) -> Iterator[dict[str, Any]]:
        """All cells, workload by workload, in the order of their keys."""
        for name in self.workloads() if workload is None else [workload]:
            for cell in self._read(self._path(name)):
                if family in (None, cell["key"]["method"].partition(":")[0]):
                    yield cell

    def workloads(self) -> list[str]:
        """The names of those that have cells."""
        return sorted(path.name.removesuffix(_LINES) for path in self.root.glob(f"runs/*{_LINES}"))

    def note(self, name: str) -> Any:
        """What `set_note` wrote under this name; None where nothing was."""
        if (rows := self._measurements().get(name)) is not None:
            return rows
        path = self.root / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def set_note(self, name: str, change: Callable[[Any], Any]) -> None:
        """Puts `change(note)` in the place of a note: a result that is no training run, such as a measurement.

        Lists of measurements, whatever their names, share one file of compressed lines, each list in its order;
        anything else is JSON in a file of its own. None is not kept.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / f"{name}.json"
        with _locked(self.root):
            note = finite(change(self.note(name)))
            measured = self._measurements()
            if isinstance(note, list) or name in measured:
                kept = {**measured, name: note if isinstance(note, list) else []}
                lines = [{_NAME: of, **row} for of in sorted(kept) for row in kept[of]]
                _replace(self.root / _MEASUREMENTS, _compressed(lines))
            if note is None or isinstance(note, list):
                path.unlink(missing_ok=True)
            else:
                _replace(path, (json.dumps(note, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())

    def measurements(self) -> list[str]:
        """The names of the notes that are lists of measurements."""
        return sorted(self._measurements())

    def _measurements(self) -> dict[str, list[dict[str, Any]]]:
        """The measurements by the names of their notes."""
        by_name: dict[str, list[dict[str, Any]]] = {}
        for line in self._read(self.root / _MEASUREMENTS):
            by_name.setdefault(line[_NAME], []).append({key: x for key, x in line.items() if key != _NAME})
        return by_name

    def _path(self, workload: str) -> Path:
        return self.root / "runs" / f"{workload}{_LINES}"

    def _read(self, path: Path) -> list[dict[str, Any]]:
        """The lines of a file, which is read again only where it has been replaced."""
        try:
            about = path.stat()
        except FileNotFoundError:
            return []
        version = about.st_ino, about.st_mtime_ns, about.st_size
        if path not in self._known or self._known[path][0] != version:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                self._known[path] = version, [json.loads(line) for line in file]
        return self._known[path][1]


def light(cell: dict[str, Any]) -> dict[str, Any]:
    """The cell with at most `CURVE_POINTS` windows of its curves, and what the pages read off finer ones.

    That is `first_loss`, the loss at the first point, and `highest_learning_rate`, unless the cell has them already.
    """
    curves = cell.get("curves")
    if not curves or "first_loss" in cell:
        return cell
    rates = [rate for rate in curves.get("learning_rate", []) if rate is not None and math.isfinite(rate)]
    read_off = {"first_loss": curves["loss"][0], "highest_learning_rate": max(rates, default=None)}
    return {**cell, **read_off, "curves": thinned(curves)}


def thinned(curves: dict[str, Any], num_points: int = CURVE_POINTS) -> dict[str, Any]:
    """Windows of `{"step": [...], "loss": [...], ...}` in place of its points.

    The loss of a window is the mean over its steps. Everything else is what it was at the window's end.
    """
    steps = curves.get("step", list(range(1, len(curves["loss"]) + 1)))
    ends = np.arange(len(steps))
    if len(steps) > num_points:  # at equal numbers of steps, each at a point that there is
        wanted = np.linspace(0, steps[-1], num_points + 1)[1:]
        ends = np.unique(np.searchsorted(steps, wanted - 1e-6 * steps[-1]))
    widths = np.diff(steps, prepend=0)
    losses = np.array([math.nan if loss is None else loss for loss in curves["loss"]], float)
    windows = [slice(begin + 1, end + 1) for begin, end in itertools.pairwise([-1, *ends.tolist()])]
    means = [float(np.average(losses[window], weights=widths[window])) for window in windows]
    return {**{name: [values[end] for end in ends] for name, values in curves.items()}, "loss": means}


def _write_lines(path: Path, cells: Iterable[dict[str, Any]]) -> None:
    _replace(path, _compressed(sorted(cells, key=lambda cell: sorted(cell["key"].items()))))


def _compressed(rows: Iterable[dict[str, Any]]) -> bytes:
    """One line of JSON a row. No name and no time is in the header: the same rows are the same bytes."""
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as file:
        for row in rows:
            line = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            file.write(line.encode() + b"\n")
    return packed.getvalue()


def _replace(path: Path, content: bytes) -> None:
    """Writes to a file beside `path` and renames it, so that no reader and no interruption sees half a file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def finite(content: Any) -> Any:
    """The same with None for NaN and infinities, which JSON does not have, and floats at 6 significant digits."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    return content


def circumstances() -> dict[str, Any]:
    """What a result depends on beside its settings: versions, the kind of machine, the commit."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = jax.devices()[0]
    machine = {
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "backend": device.platform,
        "device": device.device_kind,
    }
    return {"versions": versions, "machine": machine, "commit": _commit()}


def _commit() -> str | None:
    """The commit of this checkout, marked where the library or the suite differ from it."""
    git = ["git", "-C", str(Path(__file__).parent.parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "gen_optax", "benchmarks/*.py"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes, which may run methods of the same family, from reading what is about to change."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
