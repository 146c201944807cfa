"""What a source distribution holds: the package, and neither results nor anything else of the repository's weight."""

import pathlib
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).parents[1]


def test_the_source_distribution_is_the_package(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    assert archive.stat().st_size < 300_000
    with tarfile.open(archive) as files:
        names = {pathlib.PurePosixPath(*pathlib.PurePosixPath(name).parts[1:]) for name in files.getnames()}
    modules = {path.relative_to(ROOT) for path in (ROOT / "gen_optax").glob("*.py")}
    assert {pathlib.PurePosixPath(path) for path in modules} <= names
    assert {str(name.parts[0]) for name in names} <= {
        "gen_optax",
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "PKG-INFO",
        ".gitignore",
    }
