"""The methods: a name with settings, such as `baseline:learning_rate=0.01,schedule=linear` or `gen:sigma=1.0`.

`parse` reads such a specification, `build` makes a `Method` of it for a workload and a number of steps. Values are
numbers, `true`, `false`, `none`, words, or several numbers joined by `/`. `num_steps=auto` is the length of the run.

    baseline     the workload's base optimizer at a learning rate and a schedule
    gen          gen_optax on the workload's base optimizer, with any setting of `gen`, of its controller, which is
                 `balance`, and of its probe; `gen_horizon` with `num_steps=auto`
    gen_paper    the same with `algorithm_1`, also for probes on the gradient's own batch, which `balance` refuses
    cdat, lqa    the same with the controllers of `controllers.py`
    the rest     learning-rate-free methods and line searches, at their authors' defaults

Weight decay belongs to the workload and is the same for all methods.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import gen_optax
from benchmarks import peers
from benchmarks.controllers import CDAT, LQA
from benchmarks.workload import Workload


@dataclass(frozen=True)
class Spec:
    """A method's family and its settings."""

    family: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        settings = ",".join(f"{key}={_write(value)}" for key, value in sorted(self.options.items()))
        return f"{self.family}:{settings}" if settings else self.family

    def having(self, **options: Any) -> "Spec":
        """The same with other settings added."""
        return Spec(self.family, {**self.options, **options})


@dataclass(frozen=True)
class Method:
    """An optimizer and how to look at it.

    Attributes:
      transformation: takes `value`, `grad` and `value_fn` in `update` where it asks for them.
      learning_rate: `(state, step) -> scalar`, what multiplied the base optimizer's step; NaN where there is no such.
      eval_params: `(state, params) -> params`, the point to evaluate at.
      probe_batches: 0: `value_fn` is the loss on the gradient's batch. k: its mean over k other batches; `value` and
        `grad` are then left out.
    """

    transformation: optax.GradientTransformationExtraArgs
    learning_rate: Callable[[Any, jax.Array], jax.typing.ArrayLike]
    eval_params: Callable[[Any, Any], Any] = lambda state, params: params
    probe_batches: int = 0


def parse(text: str) -> Spec:
    """Reads `family` or `family:key=value,key=value`."""
    family, _, settings = text.partition(":")
    if family not in FAMILIES:
        raise ValueError(f"Unknown method {family!r}. Known: {', '.join(FAMILIES)}.")
    options = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"A setting is key=value, got {setting!r} in {text!r}.")
        options[key.strip()] = _read(value.strip())
    return Spec(family, options)


def build(spec: Spec, workload: Workload, num_steps: int) -> Method:
    """The method for a workload and a length of training."""
    builder = FAMILIES[spec.family]
    try:
        inspect.signature(builder).bind(workload, num_steps, **spec.options)
    except TypeError as error:
        raise ValueError(f"{spec}: {error}") from error
    return builder(workload, num_steps, **spec.options)


# Base optimizers: (learning rate or schedule, weight decay) -> transformation.
BASES: dict[str, Callable[[Any, float], optax.GradientTransformation]] = {
    "sgd": lambda rate, decay: optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum=0.9)),
    "plain_sgd": lambda rate, decay: optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate)),
    "nesterov": lambda rate, decay: optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, 0.9, nesterov=True)),
    "adamw": lambda rate, decay: optax.adamw(rate, weight_decay=decay),
    "adabelief": lambda rate, decay: optax.chain(optax.add_decayed_weights(decay), optax.adabelief(rate)),
    "adopt": lambda rate, decay: optax.chain(optax.add_decayed_weights(decay), optax.contrib.adopt(rate)),
    "rmsprop": lambda rate, decay: optax.chain(optax.add_decayed_weights(decay), optax.rmsprop(rate)),
    "lion": lambda rate, decay: optax.lion(rate, weight_decay=decay),
    "sign_sgd": lambda rate, decay: optax.chain(optax.add_decayed_weights(decay), optax.sign_sgd(rate)),
    "lamb": lambda rate, decay: optax.lamb(rate, weight_decay=decay),
    "adafactor": lambda rate, decay: optax.chain(
        optax.scale_by_factored_rms(), optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rate)
    ),
    "muon": lambda rate, decay: optax.contrib.muon(rate, weight_decay=decay, adam_weight_decay=decay),
    "sophia": lambda rate, decay: _given_obj_fn(optax.contrib.sophia(rate, weight_decay=decay)),
}


def _given_obj_fn(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Hands `value_fn` on under the name that Sophia's Hessian estimate asks for."""

    def update(updates, state, params, *, value_fn, **extra):
        return inner.update(updates, state, params, obj_fn=value_fn, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def schedule(name: str, peak: float, num_steps: int) -> optax.Schedule:
    """`constant`; `linear` or `cosine` to zero; `warmup_cosine`: cosine after a warm-up over 5 % of the steps.

    `hold_0.5` holds the peak for half of the steps, then falls linearly to zero; 0.5 may be any part below 1.
    `inverse_sqrt` knows no end: 1 / sqrt(1 + t / 100).
    """
    if name == "constant":
        return optax.constant_schedule(peak)
    if name == "inverse_sqrt":
        return lambda step: peak / jnp.sqrt(1 + step / 100)
    if held := re.fullmatch(r"hold_(0\.\d+)", name):
        falling = 1 - float(held[1])
        return lambda step: peak * jnp.clip((1 - step / num_steps) / falling, 0, 1)
    if name == "linear":
        return optax.linear_schedule(peak, 0.0, num_steps)
    if name == "cosine":
        return optax.cosine_decay_schedule(peak, num_steps)
    if name == "warmup_cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, max(1, num_steps // 20), num_steps)
    raise ValueError(f"Unknown schedule {name!r}: constant, inverse_sqrt, hold_0.5, linear, cosine or warmup_cosine.")


SCHEDULES = ("constant", "linear", "hold_0.5", "warmup_cosine")
"""Those that the baseline is tuned over."""


def _baseline(workload, total_steps, learning_rate, schedule="constant", base=None):
    rates = _schedule(schedule, learning_rate, total_steps)
    return Method(
        optax.with_extra_args_support(BASES[base or workload.base](rates, workload.weight_decay)),
        lambda state, step: rates(step),
    )


def _gen(make, **preset):
    """GeN with the controller `make()`, evaluated at the average of the iterates where it keeps one.

    Settings are the controller's constants, those of `gen` and of its probe, `base`, and

      batch: "own", "independent", or a number of independent batches.
      steps_together: how many of the last steps a probe along the path judges as one.
    """

    def builder(workload, total_steps, base=None, batch="own", probe=None, **given):
        options = {**preset, **given}
        probe_settings, settings = _take(options, _OF_A_PROBE), _take(options, _OF_GEN)
        if settings.get("num_steps") == "auto":
            settings["num_steps"] = total_steps
        if "decay" in settings:
            settings["decay"] = _schedule(settings["decay"], 1.0, total_steps)
            settings["num_steps"] = None  # it is in the schedule
        default = make()
        if unknown := sorted(options.keys() - {field.name for field in fields(default)}):
            raise ValueError(f"{', '.join(unknown)}: no setting of gen, of its probe or of {default}.")
        controller = replace(default, **options)
        probe_batches = {"own": 0, "independent": 1}.get(batch, batch)
        if probe is None and probe_settings.keys() - {"steps_together"}:
            raise ValueError(f"{', '.join(probe_settings)}: settings of a probe, which is not named. Add probe=...")
        if probe in ("finite_difference", "exact") and probe_batches:
            probe_settings["independent"] = True
        made = _probe(controller.default_probe if probe is None else _PROBES[probe], **probe_settings)
        inner = BASES[base or workload.base](1.0, workload.weight_decay)
        return Method(
            gen_optax.gen(inner, controller=controller, probe=made, **settings),
            lambda state, step: gen_optax.metrics(state)["applied_learning_rate"],
            gen_optax.averaged_params,
            probe_batches=probe_batches,
        )

    return builder


_OF_GEN = ("every", "num_steps", "decay", "average", "min_learning_rate", "max_learning_rate")
_OF_A_PROBE = ("candidates", "batching", "free_slope", "along", "steps_together")


def _take(options, names):
    return {name: options.pop(name) for name in names if name in options}


def _probe(make, steps_together=None, **settings):
    made = make(**settings)
    return made if steps_together is None else replace(made, direction=replace(made.direction, window=steps_together))


_PROBES = {
    "finite_difference": gen_optax.finite_difference,
    "exact": gen_optax.exact,
    "retrospective": gen_optax.retrospective,
}


def _peer(make, rate_name=None):
    """A peer whose factor on the learning rate takes a schedule, 1 by default."""

    def builder(workload, total_steps, schedule="constant", **options):
        factor = _schedule(schedule, 1.0, total_steps)
        return Method(
            optax.with_extra_args_support(make(factor, workload.weight_decay, **options)),
            lambda state, step: jnp.nan if rate_name is None else factor(step) * _scalar(state, rate_name),
        )

    return builder


def _averaged(builder):
    """Adds `average=gamma`: evaluation at the polynomially weighted mean of the iterates, as DoG's authors advise."""

    def averaged_builder(workload, total_steps, average=None, **options):
        method = builder(workload, total_steps, **options)
        if average is None:
            return method
        return replace(
            method,
            transformation=_with_average(method.transformation, average),
            learning_rate=lambda state, step: method.learning_rate(state.inner, step),
            eval_params=lambda state, params: state.average,
        )

    return averaged_builder


class Averaged(NamedTuple):
    """State of an optimizer that keeps a mean of its iterates."""

    inner: Any
    count: jax.Array
    average: Any


def _with_average(inner, gamma):
    def init(params):
        return Averaged(inner.init(params), jnp.zeros((), jnp.int32), params)

    def update(updates, state, params, **extra):
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        weight = (1 + gamma) / (state.count + 1 + gamma)
        moved = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda mean, new: (1 - weight) * mean + weight * new, state.average, moved)
        return updates, Averaged(inner_state, state.count + 1, average)

    return optax.GradientTransformationExtraArgs(init, update)


def _mechanize(workload, total_steps, schedule="constant", base=None):
    factor = _schedule(schedule, 1.0, total_steps)
    inner = BASES[base or workload.base](factor, workload.weight_decay)
    return Method(
        optax.contrib.mechanize(inner),
        lambda state, step: factor(step) * jnp.sum(state.s),
    )


def _momo(make):
    """MoMo's learning rate is an upper bound; its step is a Polyak step below."""

    def builder(workload, total_steps, schedule="constant", learning_rate=None, **options):
        peak = inspect.signature(make).parameters["learning_rate"].default if learning_rate is None else learning_rate
        rates = _schedule(schedule, peak, total_steps)
        return Method(make(rates, weight_decay=workload.weight_decay, **options), lambda state, step: jnp.nan)

    return builder


def _schedule_free(make):
    def builder(workload, total_steps, warmup=None, **options):
        """`warmup`: the share of the steps over which the learning rate rises; None, the default of optax, for none."""
        steps = None if warmup is None else max(1, round(warmup * total_steps))
        peak = options.get("learning_rate", inspect.signature(make).parameters["learning_rate"].default)
        return Method(
            make(warmup_steps=steps, weight_decay=workload.weight_decay, **options),
            lambda state, step: peak if steps is None else peak * jnp.minimum(1, (step + 1) / steps),
            optax.contrib.schedule_free_eval_params,
        )

    return builder


def _schedule_free_plus(workload, total_steps, warmup=None, annealing=None, **options):
    """`warmup` and `annealing` are shares of the steps, for the learning rate and for beta; None for none."""
    steps = {
        name: max(1, round(share * total_steps))
        for name, share in {"warmup_steps": warmup, "annealing_steps": annealing}.items()
        if share is not None
    }
    decay = _PLUS_DECAY * workload.weight_decay
    return Method(
        peers.schedule_free_plus(weight_decay=decay, **steps, **options),
        lambda state, step: state.learning_rate,
        lambda state, params: state.average,
    )


# Its decay is multiplied by the square of the rate. The authors say 20 where AdamW has 0.1.
_PLUS_DECAY = 200


def _line_search(make):
    def builder(workload, total_steps, base="plain_sgd", max_steps=15):
        direction = BASES[base](1.0, workload.weight_decay)
        return Method(
            optax.chain(direction, make(max_steps)),
            lambda state, step: state[-1].learning_rate,
        )

    return builder


def _polyak(workload, total_steps, **options):
    decayed = optax.add_decayed_weights(workload.weight_decay)
    return Method(optax.chain(decayed, optax.polyak_sgd(**options)), lambda state, step: jnp.nan)


FAMILIES: dict[str, Callable[..., Method]] = {
    "baseline": _baseline,
    "gen": _gen(gen_optax.balance),
    "gen_horizon": _gen(gen_optax.balance, num_steps="auto"),
    "gen_paper": _gen(gen_optax.algorithm_1),
    "gen_paper_horizon": _gen(gen_optax.algorithm_1, num_steps="auto", decay="linear"),
    "cdat": _gen(CDAT),
    "lqa": _gen(LQA),
    "prodigy": _peer(lambda s, wd, **k: optax.contrib.prodigy(s, weight_decay=wd, **k), "estim_lr"),
    "dadapt_adamw": _peer(lambda s, wd, **k: optax.contrib.dadapt_adamw(s, weight_decay=wd, **k), "estim_lr"),
    "dog": _averaged(_peer(lambda s, wd, **k: optax.contrib.dog(s, weight_decay=wd, **k))),
    "dowg": _averaged(_peer(lambda s, wd, **k: optax.contrib.dowg(s, weight_decay=wd, **k))),
    "cocob": _peer(lambda s, wd, **k: optax.contrib.cocob(s, weight_decay=wd, **k)),
    "momo": _momo(optax.contrib.momo),
    "momo_adam": _momo(optax.contrib.momo_adam),
    "mechanize": _mechanize,
    "schedule_free_adamw": _schedule_free(optax.contrib.schedule_free_adamw),
    "schedule_free_sgd": _schedule_free(optax.contrib.schedule_free_sgd),
    "schedule_free_plus": _schedule_free_plus,
    "backtracking": _line_search(optax.scale_by_backtracking_linesearch),
    "zoom": _line_search(optax.scale_by_zoom_linesearch),
    "polyak_sgd": _polyak,
}

QUALITY = (
    "gen",
    "gen_horizon",
    "gen_paper",
    "gen_paper_horizon",
    "cdat",
    "lqa",
    "prodigy",
    "prodigy:schedule=cosine",
    "dadapt_adamw",
    "dadapt_adamw:schedule=cosine",
    "dog",
    "dog:average=8",
    "dowg",
    "cocob",
    "momo",
    "momo:schedule=cosine",
    "momo_adam",
    "momo_adam:schedule=cosine",
    "mechanize",
    "mechanize:schedule=cosine",
    "schedule_free_adamw",
    "schedule_free_adamw:warmup=0.05",
    "schedule_free_sgd",
    "schedule_free_plus",
    "schedule_free_plus:warmup=0.05",
    "backtracking",
    "zoom",
    "polyak_sgd",
)
"""What the quality table compares, beside the tuned baseline."""

UNTUNED = {
    "untuned AdamW, 1e-3": "baseline:base=adamw,learning_rate=0.001,schedule=warmup_cosine",
    "untuned AdamW, 3e-4": "baseline:base=adamw,learning_rate=0.0003,schedule=warmup_cosine",
    "untuned SGD, 0.1": "baseline:base=sgd,learning_rate=0.1",
}
"""What people use who do not tune: AdamW with a warm-up and a cosine decay, SGD with momentum at a constant rate."""

_schedule = schedule  # builders have a setting of that name


def _scalar(state: Any, name: str) -> jax.Array:
    return optax.tree.get(state, name)


def _read(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text in words:
        return words[text]
    if "/" in text:
        return tuple(_read(part) for part in text.split("/"))
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _write(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "/".join(_write(part) for part in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
