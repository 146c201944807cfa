"""What a training loop collected, as arrays by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gen_optax._gen import GenInfo, GenState
from gen_optax._measurement import ProbeStatus
from gen_optax._metrics import metrics

History = Sequence[Any] | Mapping[str, Any] | GenInfo | GenState

# Why a probe was not accepted, in words.
REASONS = {
    ProbeStatus.NOT_FINITE: "loss not finite",
    ProbeStatus.OVERSHOOT: "step made the loss infinite",
    ProbeStatus.BELOW_ROUNDING: "change below rounding",
    ProbeStatus.ASCENT: "loss rose",
    ProbeStatus.NO_CURVATURE: "no curvature",
    ProbeStatus.POOR_FIT: "no parabola",
    ProbeStatus.JUMP: "steps raised the loss",
    ProbeStatus.FALSE_ALARM: "false alarm",
}


def columns(history: History) -> dict[str, np.ndarray]:
    """The history as arrays by name, one entry a step. Of entries with different names, what all of them have."""
    if isinstance(history, Mapping | GenInfo | GenState):
        result = {name: np.atleast_1d(np.asarray(value)) for name, value in _entry(history).items()}
    else:
        entries = jax.device_get([_entry(entry) for entry in history])  # at once: a transfer each would be slow
        if not entries:
            raise ValueError("The history is empty: collect gen_optax.metrics(state) after every step.")
        names = [name for name in entries[0] if all(name in entry for entry in entries)]
        result = {name: np.asarray([entry[name] for entry in entries]) for name in names}
    if "0/learning_rate" in result:
        raise ValueError(
            "The history holds several learning rates. Pass those of one, without their number: "
            "{name[2:]: value for name, value in metrics.items() if name.startswith('0/')}."
        )
    return result


def _entry(entry: Any) -> Mapping[str, Any]:
    if isinstance(entry, Mapping):
        return entry
    return entry._asdict() if isinstance(entry, GenInfo) else metrics(entry)


def probed(columns: dict[str, np.ndarray]) -> np.ndarray:
    """At which entries there was a probe. The first of a later piece of a run may tell of an earlier one."""
    counts = columns["num_probes"]
    return np.diff(counts, prepend=0 if counts[0] <= 1 else counts[0]) > 0


def steps_of(steps: Any, length: int) -> np.ndarray:
    """The step of each entry: as given, or every one from the first."""
    if steps is None:
        return np.arange(1, length + 1)
    steps = np.asarray(steps)
    if steps.shape != (length,):
        raise ValueError(f"steps needs one number per entry of the history, got {steps.shape} for {length} entries.")
    return steps
