"""The recipe of a page as it stands there, and what a run with it has to show."""

import importlib.metadata
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

PAGES = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "frameworks"
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
NUM_STEPS = 20


def run_page(name: str, **names: Any) -> dict[str, Any]:
    """Runs the python blocks of a page, all in one namespace that holds `names`, which it returns."""
    path = PAGES / f"{name}.md"
    text, namespace = path.read_text(), {"__name__": "recipe", **names}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(path), "exec"), namespace)
    return namespace


def report(package: str, losses: Sequence[float], stock: Sequence[float], found: dict[str, Any], logged: Any) -> None:
    """Checks a run with GeN and one with the framework's own AdamW, and says in a line how they went.

    Args:
      package: of the framework.
      losses: of the training steps with GeN.
      stock: of those with the framework's own AdamW.
      found: `gen_optax.metrics` after the last step.
      logged: the rates that the framework's own writer has got, in order.
    """
    logged = [float(rate) for rate in logged]
    assert len(losses) >= NUM_STEPS, f"{len(losses)} steps were recorded"
    assert losses[-1] < losses[0], f"the loss rose from {losses[0]} to {losses[-1]}"
    assert stock[-1] < stock[0], f"with the framework's AdamW the loss rose from {stock[0]} to {stock[-1]}"
    assert found["learning_rate"] > 0, "no learning rate was found"
    assert logged, "the framework's writer got no learning rate"
    assert any(math.isclose(rate, found["applied_learning_rate"], rel_tol=1e-5) for rate in logged), (
        f"the framework's writer got {logged}, the rate is {found['applied_learning_rate']}"
    )
    version = importlib.metadata.version(package)
    print(
        f"{package} {version}: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps, learning rate "
        f"{found['learning_rate']:.1e} (its own AdamW: {stock[0]:.3f} -> {stock[-1]:.3f})"
    )
