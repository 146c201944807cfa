"""The data sets, each read from its official files in a folder of its own.

    $GEN_OPTAX_DATA/<name>/...          default ~/.cache/gen_optax

`python -m benchmarks fetch` fills the folders; a user who has the original files puts them there instead.
"""

import os
from pathlib import Path


def root() -> Path:
    """The folder that holds one folder per data set."""
    return Path(os.environ.get("GEN_OPTAX_DATA", "~/.cache/gen_optax")).expanduser()


def locate(name: str, *files: str) -> Path:
    """The first of these files that the data set's folder has; an error that says how to get it otherwise."""
    folder = root() / name
    for file in files:
        if (folder / file).exists():
            return folder / file
    raise FileNotFoundError(
        f"No {' or '.join(files)} in {folder}. Run `python -m benchmarks fetch {name}`, or put the original files "
        "there (GEN_OPTAX_DATA sets the folder above it)."
    )
