"""Where results live: one JSON file per workload and method family, the cells in each and, once, what many share.

A cell is known by what was asked for (workload, method, seed, batch size, steps, precision), so that a run that was
interrupted goes on where it stopped. A file is replaced whole or not at all.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"
TINY_RESULTS = Path("build") / "benchmarks-tiny"

_SHARED = ("workload", "versions", "machine", "commit")  # the same in many cells of a file
_PACKAGES = ("gen-optax", "jax", "jaxlib", "optax", "flax", "numpy")


class Store:
    """The results under one folder."""

    def __init__(self, root: Path | str):
        self.root = Path(root)

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The finished cell of this key. One that raised an error is not finished."""
        for cell in self._read(self._path(key)):
            if cell["key"] == key and cell.get("error") is None:
                return cell
        return None

    def put(self, cell: dict[str, Any]) -> None:
        """Adds a cell to its file, in place of one with the same key."""
        path = self._path(cell["key"])
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            kept = [other for other in self._read(path) if other["key"] != cell["key"]]
            write_json(path, _packed([*kept, cell]))

    def cells(self, workload: str | None = None, family: str | None = None) -> Iterator[dict[str, Any]]:
        """All cells, in the order of their files."""
        for path in sorted(self.root.glob(f"runs/{workload or '*'}/{family or '*'}.json")):
            yield from self._read(path)

    def workloads(self) -> list[str]:
        """The names of those that have cells."""
        return sorted(path.name for path in self.root.glob("runs/*") if path.is_dir())

    def note(self, name: str) -> Any:
        """What `set_note` wrote under this name; None where nothing was."""
        path = self.root / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def set_note(self, name: str, change: Callable[[Any], Any]) -> None:
        """Puts `change(note)` in the place of a note: a result that is no training run, such as a measurement."""
        self.root.mkdir(parents=True, exist_ok=True)
        with _locked(self.root):
            write_json(self.root / f"{name}.json", change(self.note(name)))

    def _path(self, key: dict[str, Any]) -> Path:
        family = key["method"].partition(":")[0]
        return self.root / "runs" / key["workload"] / f"{family}.json"

    def _read(self, path: Path) -> list[dict[str, Any]]:
        return _unpacked(json.loads(path.read_text())) if path.exists() else []


def _packed(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The cells, each with the place of its `_SHARED` entries in a list of those that differ."""
    shared: list[dict[str, Any]] = []
    packed = []
    for cell in cells:
        about = {name: cell[name] for name in _SHARED if name in cell}
        if about not in shared:
            shared.append(about)
        own = {name: value for name, value in cell.items() if name not in _SHARED}
        packed.append({**own, "shared": shared.index(about)})
    return {"shared": shared, "cells": packed}


def _unpacked(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that were packed."""
    cells, shared = content["cells"], content["shared"]
    return [
        {**{name: value for name, value in cell.items() if name != "shared"}, **shared[cell["shared"]]}
        for cell in cells
    ]


def write_json(path: Path, content: Any) -> None:
    """Writes to a file beside `path` and renames it, so that no reader and no interruption sees half a file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(_NUMBERS.sub(_on_one_line, json.dumps(finite(content), indent=1, allow_nan=False)) + "\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


_NUMBERS = re.compile(r"\[[-\d.e+,\snul]+\]")


def _on_one_line(numbers: re.Match[str]) -> str:
    return " ".join(numbers.group().split()).replace("[ ", "[").replace(" ]", "]")


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
