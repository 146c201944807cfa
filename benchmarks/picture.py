"""The README's picture: what the demo draws, with the rule that it was drawn by in the file.

draw()               # a minute
faults(results)      # a line where the picture is of another rule than today's
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks import report, rule, store

ROOT = Path(__file__).parents[1]
NAME = "docs/assets/sweep.png"
COMMAND = "python -m benchmarks sweep"
_RULE = "rule"  # under which the file keeps the fingerprint


def draw(path: Path = ROOT / NAME) -> None:
    """Runs the demo, and keeps its picture as a small file."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "demo.png"
        subprocess.run([sys.executable, "-m", "gen_optax.demo", "--output", str(drawn)], check=True)
        keep(drawn, path)


def keep(drawn: Path, path: Path) -> None:
    """Writes a picture with few colours, and today's rule in it."""
    about = PngInfo()
    about.add_text(_RULE, rule.fingerprint())
    with Image.open(drawn) as image:
        report.with_few_colours(image).save(path, optimize=True, pnginfo=about)


def faults(results: store.Store, root: Path = ROOT) -> Iterator[str]:
    """A line where the picture is of a rule that does not give today's results."""
    with Image.open(root / NAME) as image:
        image.load()
        of = str(image.info.get(_RULE, rule.UNKNOWN))
    if not rule.is_today(results, {"key": {}, "rule": of}):
        yield f"{NAME}:1: is drawn by rule {of}, and today's is {rule.fingerprint()}. {COMMAND}"
