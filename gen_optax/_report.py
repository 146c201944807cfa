"""What a run found, in a few lines, and the schedule that copies it for a plain optimizer.

search     the first calls, at which probes come close together
level      the learning rate after the search, constant or a power of the step
decay      the rate as applied over the learning rate: read off, not fitted
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_optax import _history, _notice
from gen_optax._balance import Balance
from gen_optax._measurement import ProbeStatus
from gen_optax._notice import Notice

_NEEDED = ("learning_rate", "applied_learning_rate", "slope", "curvature", "status", "num_probes")
# The statuses of probes that say which way the rate should go.
_READABLE = (ProbeStatus.ACCEPTED, ProbeStatus.ASCENT, ProbeStatus.NO_CURVATURE)

# Distances between probes: so many are compared with so many, and the later are longer by this factor.
_NEAR, _WIDER = 5, 1.5
# The level is read where the decay leaves at least this part of the rate: below it, little is applied.
_FULL = 0.25
# The level is a power of the step where that moves it by this factor, while the step grows by this one, and explains
# this part of its variance.
_MOVES, _GROWS, _EXPLAINED = 1.5, 4.0, 0.5
# A decay is a straight line if no factor is farther from it than this.
_STRAIGHT = 0.01
# Of any other decay so many factors are kept.
_POINTS = 1000

# What limits the rate: the fewest probes that can tell, and shares of them.
_ENOUGH, _MANY, _MOST, _FEW = 10, 0.3, 0.7, 0.1
# Beyond this median of b / (A h), nothing limits the rate yet.
_FAR = 2.0


def report(history: _history.History, *, steps: Any = None) -> "Report":
    r"""What a run found, in at most six lines, with a schedule to copy for a plain optimizer.

    Args:
      history: what a training loop collected: a sequence of :func:`gen_optax.metrics` (or of optimizer states), one per
        step, or one such dict whose values are arrays. Further names, such as `loss`, do no harm.
      steps: the number of the step of each entry, where that was not every step from the first, shape `(n,)`. The
        first step of a run has the number 1.

    Returns:
      A :class:`gen_optax.Report` to `print`, or to read the fields of. Its `schedule()` is an optax schedule.

    Raises:
      ValueError: if the history has less than two entries, lacks a name that :func:`gen_optax.metrics` returns, or has
        not one entry per step.

    Examples:
      >>> import gen_optax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = gen_optax.gen(optax.adam(1.0), num_steps=200)
      >>> def loss_fn(w): return jnp.sum((w - 3.0) ** 2)
      >>> def step(carry, _):
      ...   w, state = carry
      ...   value, grads = jax.value_and_grad(loss_fn)(w)
      ...   updates, state = tx.update(grads, state, w, value=value, value_fn=loss_fn)
      ...   return (optax.apply_updates(w, updates), state), gen_optax.metrics(state)
      >>> w = jnp.zeros(2)
      >>> _, history = jax.lax.scan(step, (w, tx.init(w)), length=200)
      >>> report = gen_optax.report(history)
      >>> print(str(report).splitlines()[1])
      Search: the first 51 of 200 steps (26 %).
      >>> plain = optax.adam(report.schedule())
    """
    columns = _history.columns(history)
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise ValueError(
            f"report needs {', '.join(missing)} in every entry of the history: collect gen_optax.metrics(state) after "
            "each step, not state.info, and leave none of its names out."
        )
    if len(columns["status"]) < 2:
        raise ValueError(
            "report needs the history of a run, and got one entry. Collect one after each step, with "
            "history.append(gen_optax.metrics(state)), or return gen_optax.metrics(state) from the step of a "
            "jax.lax.scan. gen_optax.metrics(state) is what one moment has to say."
        )
    steps = _history.steps_of(steps, len(columns["status"]))
    seen = _history.probed(columns)
    statuses = [ProbeStatus(int(status)) for status in columns["status"][seen]]
    facts: dict[str, Any] = dict(
        last_step=int(steps[-1]),
        num_probes=int(columns["num_probes"][-1]),
        statuses={status: statuses.count(status) for status in ProbeStatus if status in statuses},
        notices=Notice(int(np.bitwise_or.reduce(np.asarray(columns.get("notices", [0]), int)))),
    )
    rate = np.asarray(columns["learning_rate"], float)
    known = np.isfinite(rate) & (rate > 0)
    if not known.any():
        last = ProbeStatus(int(columns["status"][-1]))
        why = f"no rate was found, {_history.REASONS.get(last, 'and no status says why')}"
        return Report(**facts, limit="not clear", why=why)

    search_steps = _search_steps(steps, columns["num_probes"])
    factors = _factors(columns, rate, known)
    full = known & (factors >= _FULL)
    after = full & (steps > search_steps)
    # A run that ended in its search: what it came to.
    held = after if after.any() else known & (steps >= np.median(steps[known]))
    limit, why = _limit(columns, seen & after, search_steps)
    return Report(
        **facts,
        limit=limit,
        why=why,
        learning_rate=float(np.exp(np.median(np.log(rate[held])))),
        learning_rate_range=(float(rate[held].min()), float(rate[held].max())),
        search_steps=search_steps,
        copied=_copy(steps, rate, held, factors, search_steps),
    )


@dataclasses.dataclass(frozen=True)
class CopiedSchedule:
    """An optax schedule: a warm-up, a level and a decay that come close to the rates as applied."""

    peak: float  # the level where it begins
    warmup_steps: int  # linear from 0; 0: none
    level_from: int  # the step at which the level begins
    power: float  # the level goes with the step to this power; 0: it is constant
    decay: tuple[float, float] | None  # counts between which the rate falls linearly to 0; None: no such decay
    factors: tuple[tuple[int, ...], tuple[float, ...]]  # without it: counts, and the decay there

    def __call__(self, count: Any) -> jax.Array:
        """The learning rate after `count` steps."""
        count = jnp.asarray(count, jnp.result_type(float))
        warmup = jnp.minimum((count + 1) / max(self.warmup_steps, 1), 1)
        level = self.peak * jnp.maximum((count + 1) / self.level_from, 1) ** self.power
        if self.decay is None:
            return warmup * level * jnp.interp(count, *map(jnp.asarray, self.factors))
        start, end = self.decay
        return warmup * level * jnp.clip((end - count) / (end - start), 0, 1)

    def __str__(self):
        """In the words of a training script."""
        peak = f"{'' if self.power > 0 else 'peak '}{self.peak:.2g}"
        words = [f"{peak} after {_counted(self.warmup_steps)} of warm-up" if self.warmup_steps else f"{peak} at once"]
        words.append(f"then times (step / {self.level_from:,})^{self.power:.2f}" if self.power else "hold")
        if self.decay is not None:
            words.append("linear to 0 from step {:,} to {:,}".format(*map(round, self.decay)))
        elif np.ptp(self.factors[1]) > _STRAIGHT:
            words.append("and all of it times the decay of the run")
        return ", ".join(words)


@dataclasses.dataclass(frozen=True)
class Report:
    r"""What :func:`gen_optax.report` found. `str` gives it in at most six lines.

    *The search* is the part of the run at which probes come closer together than later. Its end is the first distance
    between two probes that is clearly longer than those before and stays so.

    *What limits the rate* is read off the readable probes after the search. With slope :math:`b h` and curvature
    :math:`A h^2` of the steps that a probe judges, on a batch that they have not seen, these steps gained
    :math:`b h - A h^2 / 2`. Let :math:`q` be the share of the probes at which that is negative.

    * `noise`: :math:`0.3 \le q \le 0.7`. The steps help some batches and harm nearly as many: a larger batch or a decay
      allows for more.
    * `curvature`: :math:`q \le 0.1`, the batches agree, and the median of `b / (A h)` is at most 2, so that steps of
      four times the length would help no more; or steps that were too long were taken back.
    * `nothing`: :math:`q \le 0.1`, and the minimum lies farther away than that. The rate was still on its way up, or a
      bound held it.
    * `not clear`: everything else, such as fewer than 10 probes. So is a run without a search, since its probes may
      judge steps on their own batch, where noise does not show.

    *The schedule to copy* has a linear warm-up over the search. Its level is the median of the learning rate, or a
    power of the step where that moves the rate by more than a factor of 1.5 while the step grows by one of 4, and
    explains half of the variance of the rate's logarithm. The decay is the rate as applied over the learning rate.
    Level and limit are read where the decay is at least 1/4.

    Attributes:
      last_step: the number of the last step.
      num_probes: the number of all probes.
      statuses: how many of the probes that the history tells of had which :class:`gen_optax.ProbeStatus`. A history of
        every k-th step tells of the last probe before each entry.
      notices: a :class:`gen_optax.Notice`: what is wrong with the set-up.
      limit: what limits the rate: one of the four names above.
      why: how that shows.
      learning_rate: the median after the search, before the decay; 0: none was found.
      learning_rate_range: the least and the largest after the search.
      search_steps: the number of steps of the search, those before a rate was found included; 0: none is seen.
      copied: the schedule to copy, with its `peak`, `warmup_steps`, `power` and `decay`; None where no rate was found.
      readable: the share of the probes that say which way the rate should go: ACCEPTED, ASCENT and NO_CURVATURE.
    """

    last_step: int
    num_probes: int
    statuses: dict[ProbeStatus, int]
    notices: Notice
    limit: str
    why: str
    learning_rate: float = 0.0
    learning_rate_range: tuple[float, float] = (0.0, 0.0)
    search_steps: int = 0
    copied: CopiedSchedule | None = None

    @property
    def readable(self) -> float:
        """The share of the probes that say which way the rate should go: ACCEPTED, ASCENT and NO_CURVATURE."""
        total = sum(self.statuses.values())
        return sum(self.statuses.get(status, 0) for status in _READABLE) / max(total, 1)

    def schedule(self) -> Callable[[Any], jax.Array]:
        """An optax schedule that copies the rates of the run: `optax.adamw(report.schedule())`.

        Raises:
          ValueError: if the run never found a learning rate.
        """
        if self.copied is None:
            raise ValueError(f"There is no schedule to copy: {self.why}. See the page 'When it does not work'.")
        return self.copied

    def __str__(self):
        """At most six lines."""
        if self.copied is None:
            return f"Learning rate: none after {_counted(self.last_step)}; {self.why}.\n{self._set_up()}"
        low, high = self.learning_rate_range
        where = "after the search" if self.search_steps < self.last_step else "before the run ended in the search"
        lines = [
            f"Learning rate: {self.learning_rate:.2g}, between {low:.2g} and {high:.2g} {where}.",
            f"Search: {self._search()}.",
            self._probes(),
            f"Limit: {self.limit}; {self.why}.",
            self._set_up(),
            f"To copy: {self.copied}.",
        ]
        return "\n".join(lines)

    def _search(self) -> str:
        if not self.search_steps:
            return "the history shows none, the probes came evenly"
        share = _percent(self.search_steps / self.last_step)
        return f"the first {self.search_steps:,} of {_counted(self.last_step)} ({share})"

    def _probes(self) -> str:
        total = sum(self.statuses.values())
        if not total:
            return f"Probes: {self.num_probes:,}."
        told = "" if total == self.num_probes else f" (the history tells of {total:,})"
        others = {status: n for status, n in self.statuses.items() if status not in _READABLE}
        why = [f"{_history.REASONS.get(status, status.name)} {_percent(n / total)}" for status, n in others.items()]
        words = f"Probes: {self.num_probes:,}{told}, {_percent(self.readable)} readable"
        return f"{words}; the others: {', '.join(why)}." if why else f"{words}."

    def _set_up(self) -> str:
        if not self.notices:
            return "Set-up: no notice."
        said = [f"{notice.name}, {_notice.ADVICE[notice].split('. ')[0]}" for notice in Notice if notice & self.notices]
        return f"Set-up: {'; '.join(said)}."


def _search_steps(steps: np.ndarray, counts: np.ndarray) -> int:
    """The number of steps until the distance between probes grows for good; 0: it does not.

    Between two entries probes are taken to be evenly spaced.
    """
    if counts[-1] < 2 or counts[0] > steps[0]:  # too few, or a later piece of a run
        return 0
    reached, first = np.unique(counts, return_index=True)
    at = np.interp(np.arange(1, counts[-1] + 1), np.append(0, reached), np.append(0, steps[first]))
    gaps = np.diff(at)
    usual = np.median(gaps[:_NEAR])
    for i in np.flatnonzero(gaps > _WIDER * usual):
        if np.median(gaps[i : i + _NEAR]) > _WIDER * usual:
            return int(np.ceil(at[i]))
    ends_in_search = counts[-1] <= Balance().search_probes and usual < _WIDER
    return int(np.ceil(at[-1])) if ends_in_search else 0


def _factors(columns: dict[str, np.ndarray], rate: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The decay at each entry; NaN where no step was taken."""
    applied = np.asarray(columns["applied_learning_rate"], float)
    refused = (applied == 0) & np.isin(columns["status"], (ProbeStatus.OVERSHOOT, ProbeStatus.JUMP))
    return np.where(known & ~refused, applied / np.where(known, rate, 1), np.nan)


def _limit(columns: dict[str, np.ndarray], seen: np.ndarray, search_steps: int) -> tuple[str, str]:
    """What limits the rate, and why, by the probes after the search. See `Report`."""
    if not search_steps:
        return "not clear", "the history shows no search"
    # The steps judged had the rate that was applied before the probe.
    before = np.append(np.nan, np.asarray(columns["applied_learning_rate"], float)[:-1])
    slope, curvature = before * columns["slope"], before**2 * columns["curvature"]
    readable = seen & np.isin(columns["status"], _READABLE) & np.isfinite(slope) & np.isfinite(curvature)
    slope, curvature = slope[readable], curvature[readable]
    if len(slope) < _ENOUGH:
        return "not clear", f"only {len(slope)} readable probes after the search"
    harmed = np.mean(slope < curvature / 2)
    words = f"the steps raised the loss of a fresh batch at {_percent(harmed)} of the probes"
    if _MANY <= harmed <= _MOST:
        return "noise", words
    if harmed > _FEW:
        return "not clear", words
    taken_back = int(np.sum(seen & np.isin(columns["status"], (ProbeStatus.OVERSHOOT, ProbeStatus.JUMP))))
    if taken_back:
        return "curvature", f"{words}, and steps that were too long were taken back {_times(taken_back)}"
    reach = float(np.median(np.where(curvature > 0, slope / np.where(curvature > 0, curvature, 1), np.inf)))
    if reach <= _FAR:
        return "curvature", f"{words}, and the minimum lies {reach:.2g} times as far as they went"
    far = f"{reach:.2g} times as far as they went" if np.isfinite(reach) else "out of sight"
    return "nothing", f"{words}, and the minimum lies {far}"


def _copy(
    steps: np.ndarray, rate: np.ndarray, held: np.ndarray, factors: np.ndarray, search_steps: int
) -> CopiedSchedule:
    """The level by the entries that are held, the decay by all."""
    level_from = int(steps[held][0])
    x, y = np.log(np.maximum(steps[held] / level_from, 1)), np.log(rate[held])
    power, peak = 0.0, np.median(y)
    if x.max() > np.log(_GROWS):
        slope, start = np.polyfit(x, y, 1)
        explained = 1 - np.var(y - start - slope * x) / max(np.var(y), np.finfo(float).tiny)
        if abs(slope) * x.max() > np.log(_MOVES) and explained > _EXPLAINED:
            power, peak = float(slope), start
    counts, shape = steps[np.isfinite(factors)] - 1, factors[np.isfinite(factors)]
    if not len(counts):  # no step was taken
        counts, shape = steps[:1] - 1, np.ones(1)
    few = np.unique(np.linspace(0, len(counts) - 1, _POINTS).astype(int))
    return CopiedSchedule(
        peak=float(np.exp(peak)),
        warmup_steps=search_steps,
        level_from=level_from,
        power=power,
        decay=_line(counts, shape),
        factors=(tuple(map(int, counts[few])), tuple(map(float, shape[few]))),
    )


def _line(counts: np.ndarray, shape: np.ndarray) -> tuple[float, float] | None:
    """The counts, not whole ones, between which the decay falls linearly from 1 to 0, if it does."""
    falling = (shape > _STRAIGHT) & (shape < 1 - _STRAIGHT)
    if falling.sum() < 2:
        return None
    slope, start = np.polyfit(counts[falling], shape[falling], 1)
    if slope >= 0 or np.abs(shape - np.clip(start + slope * counts, 0, 1)).max() > _STRAIGHT:
        return None
    return float((1 - start) / slope), float(-start / slope)


def _counted(steps: int) -> str:
    return f"{steps:,} step{'' if steps == 1 else 's'}"


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.1 or part == 0 else f"{100 * part:.2g} %"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"
