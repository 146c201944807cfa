"""Where `scale_by_gen` may stand among optax's wrappers, and what to write instead where it may not.

Four things go wrong. A wrapper between the base and `scale_by_gen` that moves parameters by rules of its own (averages
them, or holds them back for some calls) hands on updates that must not be scaled. A base that finds a learning rate
itself, and GeN, change one factor by two rules. A learning rate that the base schedules is measured away. And a wrapper
around it that calls `update` more often than it applies the result probes in vain. None of them crashes; so all are
looked for here.
"""

import sys
import warnings
from typing import Any

import jax
import optax

_NOT_IN_THE_BASE = {
    optax.MultiStepsState: "the step of optax.MultiSteps is zero at all calls but every k-th, with nothing to probe. "
    "Accumulate outside, with gen_optax.mean_value_and_grad, and call update once per step.",
    optax.LookaheadState: "optax.lookahead moves two sets of parameters that must not be scaled apart. "
    "Turn it inside out: optax.lookahead(gen(base, value_fn=...), ...).",
    optax.contrib.ScheduleFreeState: "optax.contrib.schedule_free averages unscaled steps of its own. "
    "Turn it inside out: optax.contrib.schedule_free(gen(base, controller=gen_optax.balance(alignment=None)), "
    "learning_rate=1.0).",
    optax.contrib.ReduceLROnPlateauState: "what optax.contrib.reduce_on_plateau takes off the step here, the learning "
    "rate makes up for. Put it behind: optax.chain(gen(base), optax.contrib.reduce_on_plateau(...)).",
}

# A state with a field of such a name is of an optimizer that finds a learning rate itself: Prodigy, D-Adaptation, line
# searches, GeN. What is given by `optax.inject_hyperparams` is no field but an entry of a dict.
_OWN_RATE = {"learning_rate", "lr", "estim_lr", "step_size"}
# These find one, and keep no field of such a name.
_FINDS_A_RATE = (
    optax.contrib.COCOBState,
    optax.contrib.DoGState,
    optax.contrib.DoWGState,
    optax.contrib.MechanicState,
    optax.contrib.MomoAdamState,
    optax.contrib.MomoState,
)


def refuse_base(state: Any) -> None:
    """Raises a ValueError if the state of a base shows that scaling its updates would be wrong."""
    for leaf in jax.tree.leaves(state, is_leaf=lambda x: bool(_why_not(x))):
        if why := _why_not(leaf):
            raise ValueError(f"gen cannot scale the updates of this base: {why}")


def _why_not(state: Any) -> str:
    """What to write instead of a base with this state; empty where nothing is wrong with it."""
    if type(state) in _NOT_IN_THE_BASE:
        return _NOT_IN_THE_BASE[type(state)]
    if isinstance(state, _FINDS_A_RATE) or _OWN_RATE & set(getattr(state, "_fields", ())):
        return (
            f"its state has a {type(state).__name__}, so it finds a learning rate itself, and GeN would change the "
            "same factor by another rule. Choose one: train with this optimizer alone, or give gen one whose learning "
            "rate is the constant 1, such as optax.adamw(1.0), or optax.lbfgs(1.0, linesearch=None) without its line "
            "search."
        )
    return ""


def warn_of_base(state: Any) -> None:
    """Warns if the state of a base shows a schedule of its learning rate."""
    if any(map(_is_scheduled, jax.tree.leaves(state, is_leaf=_is_scheduled))):
        warnings.warn(
            "The base of gen schedules a learning rate of its own, which GeN makes up for: its learning rate rises "
            "as the schedule falls. Give the base the constant 1.0 and the schedule to gen, with a peak of 1: "
            "gen(optax.adamw(1.0), decay=optax.cosine_decay_schedule(1.0, T)), or gen(..., num_steps=T).",
            stacklevel=3,
        )


def _is_scheduled(state: Any) -> bool:
    """Of a schedule given to an optimizer, or by name to `optax.inject_hyperparams`."""
    if isinstance(state, optax.InjectStatefulHyperparamsState):
        return any("learning_rate" in name for name in state.hyperparams_states)
    return isinstance(state, optax.ScaleByScheduleState)


def refuse_params(params: Any) -> None:
    """Raises a ValueError where `scale_by_gen` stands outside of `optax.lookahead`."""
    if isinstance(params, optax.LookaheadParams):
        raise ValueError(f"scale_by_gen was given LookaheadParams: {_NOT_IN_THE_BASE[optax.LookaheadState]}")


def warn_in_multi_steps() -> None:
    """Warns where `optax.MultiSteps` is among the callers.

    Neither arguments nor state tell, hence the look at the stack; under `jit` it happens once, while tracing.
    """
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code is optax.MultiSteps.update.__code__:
            warnings.warn(
                "scale_by_gen runs inside optax.MultiSteps, which calls update at every mini-step and keeps one result "
                "of k: a probe that is due costs k times, and sees one mini-batch where the gradient is the mean of "
                "all. Accumulate with gen_optax.mean_value_and_grad(loss_fn, microbatches) instead, and call update "
                "once per step with value_fn=gen_optax.mean_value_fn(loss_fn, microbatches).",
                stacklevel=2,
            )
            return
