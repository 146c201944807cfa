"""GeN as an optax transformation: the step of any base optimizer, times a learning rate that is measured.

Each call scales the incoming updates `u` by `eta * s(t)`. Every Phi-th call first renews `eta`:

    probe   the loss along the step                       _probe.py   -> slope b h, curvature A h^2
    judge   is it convex, descending, trustworthy?        _control.py -> a status; only a good fit moves eta
    aim     sigma * b / A, not too far from the present   _control.py
    smooth                                                _control.py -> eta

`s(t)`, the decay over a horizon, stays outside of all that: it scales the step, never the average. The state is a few
scalars. The one exception is a probe that looks back, which has to remember where it looks back to.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_optax import _axes, _company, _control, _fit, _loss, _probe
from gen_optax._control import ProbeStatus


class GenInfo(NamedTuple):
    """The last probe, for logs and plots. Floating-point scalars have the dtype of `GenState.learning_rate`.

    The step `u` is the one to come or, for a probe that looks back, the sum of those judged, per unit of learning rate.
    """

    value: jax.Array  # loss where the probed step starts
    slope: jax.Array  # b = -G.u: decrease of the loss per unit of learning rate; > 0 on a descending step
    curvature: jax.Array  # A = u.H.u
    optimal_learning_rate: jax.Array  # b / A, the minimiser of the parabola; +-inf where it has none
    r_squared: jax.Array  # of the fit; 1 where it cannot fail
    status: jax.Array  # int32, a ProbeStatus: why the probe was not accepted
    accepted: jax.Array  # bool; the rate follows, but for a probe at an alarm, which only asks for an overshot
    num_probes: jax.Array  # int32, probes so far
    num_accepted: jax.Array  # int32, accepted probes so far


class GenState(NamedTuple):
    """State of `scale_by_gen`: scalars of float32 (float64 under x64), whatever the dtype of the parameters."""

    count: jax.Array  # type: ignore[assignment]  # int32, calls of update so far
    learning_rate: jax.Array  # the smoothed eta, before the decay; 0: not found yet
    applied_learning_rate: jax.Array  # what the last updates were multiplied by: eta * s(t)
    first_learning_rate: jax.Array  # where a search for the rate began, which does not fall below; else 0
    averages: Any  # (slope, curvature), moving averages; () unless smooth="coefficients"
    losses: Any  # what its average has been, to know a setback by; () where no rate is ever searched for
    memory: Any  # () or, for a probe that looks back, the parameters where the steps started that it judges
    info: GenInfo


def scale_by_gen(
    init_learning_rate: float | None = None,
    probe: _probe.Probe | None = None,
    every: int = 16,
    smoothing: float = 0.95,
    smooth: Literal["learning_rate", "log", "coefficients"] = "log",
    max_change: float | None = 2.0,
    sigma: float | None = None,
    num_steps: int | None = None,
    decay: optax.Schedule | None = None,
    min_learning_rate: float | None = None,
    max_learning_rate: float | None = None,
    axis_name: Any = None,
    value_fn: Callable[..., Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales updates by the learning rate that minimises a quadratic model of the loss along them.

    For a loss `L` with gradient `G` and Hessian `H` at the parameters `w`, and updates `u` (a step with its sign),

    .. math::
      L(w + \eta u) \approx L(w) - b\,\eta + \tfrac12 A\,\eta^2, \qquad b = -G^\top u, \quad A = u^\top H u,

    which is least at :math:`\eta^* = b / A`. At every `every`-th call the parabola is measured by `probe`; where it is
    convex, descending and trustworthy, the learning rate follows,

    .. math::
      \hat\eta = \mathrm{clip}(\sigma \eta^*, \eta_{t-1} / m, \eta_{t-1} m), \qquad
      \eta_t = \eta_{t-1}^{\gamma} \, \hat\eta^{1-\gamma},

    (or another average, see `smooth`), and otherwise stays. The updates are multiplied by :math:`\eta_t s(t)`, with
    `s` a decay from 1 to 0 over `num_steps`.

    On the batch that the step was computed from, `b` flatters the step. The default probe therefore looks back, on the
    present batch: at the sum `h u` of the last 16 steps or so, as they were applied, of which
    :math:`\eta_{t-1} \sigma b / (A h)` takes the place of :math:`\sigma\eta^*`, and once a rate is found
    :math:`\eta_{t-1} \exp(\sigma b / (A h) - 1)`, whose logarithm averages out the noise of `b`. With
    :math:`\sigma = 2` the rate would rest where the steps stop making progress on a fresh batch,
    :math:`b h = A h^2 / 2`; the default is a little less. A fresh batch that they made worse lowers the rate as far as
    `max_change` allows. So does, once a rate is found, an average loss that the steps have cost a quarter of its gain.

    Put it last in a chain, after a base optimizer of learning rate 1: the direction that is probed is then the one that
    is applied. Algorithm 1 of the paper, to the letter, is `scale_by_gen(init_learning_rate=1e-3,
    probe=finite_difference(), every=8, smoothing=0.9, smooth="learning_rate", max_change=None)`.

    Args:
      init_learning_rate: :math:`\eta_0`, where to begin. None, and as good as any: it is found. The first call tries
        rates that double, and starts at a fiftieth of the best; until there is one, no step is taken. From there the
        rate climbs, judged by 50 probes in a row: for these with a :math:`\sigma` of at most 1, on an independent batch
        up by the cube root of the factor to the target, to no rate below the start, and with a :math:`\gamma` that
        grows to `smoothing` over `4 every / (1 - smoothing)` calls, 1,280 by default. A given rate is where the climb
        starts if that is lower, by up to a factor of 10, than where it would; any other counts as unknown. With
        `max_change=None` a given rate is taken as it is.
      probe: how the parabola is measured: :func:`gen_optax.retrospective` (the default; it keeps one copy of the
        parameters in the state), :func:`gen_optax.finite_difference` or :func:`gen_optax.exact` (which keep none. On
        the gradient's own batch the rate can run away, less so with a horizon: give them another, `independent=True`).
      every: :math:`\Phi`. Every `every`-th call probes, and the first ones where :math:`\eta_0` is unknown. At the
        others no loss is evaluated, once there is a rate: as long as none is found, each call tries anew.
      smoothing: :math:`\gamma`, in [0, 1).
      smooth: what is averaged: `"log"`, the logarithm of the target; `"learning_rate"`, the target (Algorithm 1);
        `"coefficients"`, `b` and `A` separately, whose ratio then makes the target. (The exponential above is that of
        `"log"`, with a clamp.)
      max_change: `m`, greater than 1: how far the target may lie from the present learning rate. None: no limit, and
        :math:`\eta_0` is taken as it is.
        After a step that overshot beyond doubt it may lie at a tenth.
      sigma: factor on `b / A`. 1 is the greedy minimiser, 2 the break-even point and the edge of stability. None: 1.8
        for a probe that looks back, with `num_steps` or `decay`; 1.6 without them, and ahead on an independent batch,
        where the rate sinks while training makes little progress; 1 on the step's own batch.
      num_steps: the horizon `T`: :math:`s(t) = \min(1, \max(0, 4 - 4 t / T))`, which is 1 for three quarters of it and
        then falls to 0. None: no decay.
      decay: a schedule to take the place of `s`, for example `optax.cosine_decay_schedule(1.0, T)`; `num_steps` then
        counts for nothing.
      min_learning_rate: lower bound of the learning rate before the decay.
      max_learning_rate: upper bound, likewise.
      axis_name: name (or names) of the `shard_map` or `pmap` axes over which the batch is split; losses and slopes are
        averaged over it. Under plain `jit` with shardings none is needed.
      value_fn: the loss, for training loops whose `update` cannot pass it; one given to `update` wins.

    Returns:
      A transformation whose `update` takes `params` and the keyword arguments

      * `value_fn`: `value_fn(params, **kwargs)` returns the loss to probe, a real scalar, or `(loss, aux)`. Its
        keyword arguments are taken by name from the extra arguments of `update`. It must be one function for all step
        sizes: one batch, one dropout key.
      * `value`: optional, `value_fn(params)`; saves a forward pass. And the default probe is then there at once where
        the loss jumps, to lower a rate that overshot; without it, at its next turn.
      * `grad`: the gradient of `value_fn`, neither clipped nor otherwise transformed; what
        `finite_difference(free_slope=True)` takes the slope from, and no other probe asks for.

      To probe on another batch than the gradient's, close `value_fn` over that batch and leave both out. Extra
      arguments that nobody asks for are ignored.

    Raises:
      ValueError: on settings outside their range; from `update`, if `params` or `value_fn` is missing, or if the loss
        is no real scalar.

    Examples:
      >>> import gen_optax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> def loss_fn(w, x, y): return jnp.mean((x @ w - y) ** 2)
      >>> x, y = jnp.eye(3), jnp.array([1.0, 2.0, 3.0])
      >>> w = jnp.zeros(3)
      >>> tx = optax.chain(optax.adam(1.0), gen_optax.scale_by_gen(num_steps=200))
      >>> state = tx.init(w)
      >>> @jax.jit
      ... def step(w, state):
      ...   value, grads = jax.value_and_grad(loss_fn)(w, x, y)
      ...   updates, state = tx.update(grads, state, w, value=value, value_fn=loss_fn, x=x, y=y)
      ...   return optax.apply_updates(w, updates), state
      >>> for _ in range(200):
      ...   w, state = step(w, state)
      >>> bool(loss_fn(w, x, y) < 1e-2 * loss_fn(jnp.zeros(3), x, y))
      True
      >>> learning_rate = optax.tree.get(state, "learning_rate")

    References:
      Bu and Xu, `Gradient descent with generalized Newton's method <https://arxiv.org/abs/2407.02772>`_, 2024
    """
    probe = _probe.retrospective() if probe is None else probe
    _check(
        probe=probe,
        init_learning_rate=init_learning_rate,
        every=every,
        smoothing=smoothing,
        smooth=smooth,
        max_change=max_change,
        sigma=sigma,
        num_steps=num_steps,
        decay=decay,
        min_learning_rate=min_learning_rate,
        max_learning_rate=max_learning_rate,
        value_fn=value_fn,
    )
    decays = num_steps is not None or decay is not None
    rule = _control.Rule(
        smoothing,
        smooth,
        max_change,
        _control.sigma_for(probe.independent, probe.looks_back, decays) if sigma is None else sigma,
        every,
        min_learning_rate,
        max_learning_rate,
        searches=init_learning_rate is None or max_change is not None,
    )
    default_value_fn = value_fn

    def init_fn(params: optax.Params) -> GenState:
        # Every field an array of its own, and the memory a copy: all of them, and params, can then be donated.
        dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
        zero, none = functools.partial(jnp.zeros, (), dtype), functools.partial(jnp.zeros, (), jnp.int32)
        given = zero() if init_learning_rate is None else jnp.array(init_learning_rate, dtype)
        return GenState(
            count=none(),
            learning_rate=_control.bound(rule, given),
            applied_learning_rate=zero(),
            first_learning_rate=zero(),
            averages=_control.Averages(zero(), zero()) if smooth == "coefficients" else (),
            losses=_control.no_losses(probe.looks_back, dtype) if rule.searches else (),
            memory=jax.tree.map(jnp.copy, params) if probe.looks_back else (),
            info=GenInfo(zero(), zero(), zero(), zero(), zero(), none(), jnp.zeros((), jnp.bool_), none(), none()),
        )

    def update_fn(
        updates: optax.Updates,
        state: GenState,
        params: optax.Params | None = None,
        *,
        value: jax.typing.ArrayLike | None = None,
        grad: optax.Updates | None = None,
        value_fn: Callable[..., Any] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GenState]:
        value_fn = default_value_fn if value_fn is None else value_fn
        if params is None:
            raise ValueError(f"scale_by_gen probes the loss around the parameters: pass params to update.{_loss.USAGE}")
        _company.refuse_params(params)
        if value_fn is None:
            raise ValueError(
                f"scale_by_gen evaluates the loss along the step: pass value_fn=loss_fn to update.{_loss.USAGE}\n"
                "If you did, a wrapper around scale_by_gen drops the extra arguments of update, as optax.lookahead, "
                "optax.MultiSteps(...).gradient_transformation() and flax.training.train_state.TrainState do: give "
                "value_fn to scale_by_gen (or gen) itself, leave the wrapper out, or take gen_optax.linen.TrainState."
            )
        _company.warn_in_multi_steps()
        _axes.require_axis_name(axis_name)
        loss = _loss.bind(value_fn, extra_args | _given(value=value, grad=grad))
        if value is not None:
            value = _loss.as_scalar(value, "value must be")
        if grad is not None:
            grad = jax.lax.stop_gradient(grad)
        scale = _decay(num_steps, decay, state.count, state.learning_rate.dtype)
        context = _probe.Context(loss, params, updates, state.learning_rate, value, grad, state.memory, axis_name)

        if rule.searches:
            unknown = (state.learning_rate == 0) | (state.count == 0)
            state = jax.lax.cond(unknown, functools.partial(_find, rule, context, unknown), lambda state: state, state)

        regular = (state.count + 1) % every == 0
        finding = _control.finding(rule, state.first_learning_rate, state.info.num_probes)
        planned = regular | finding | (state.info.status == ProbeStatus.OVERSHOOT)
        due = planned
        if probe.looks_back:
            if value is None:  # no alarm: at least what is to be judged next does not start at an overshot
                due |= _control.begins(rule, state.count + 1)
            else:
                here = _axes.mean(value, axis_name)
                due |= _control.alarming(here, state.info.value, state.info.num_probes)
            due &= state.count > 0  # at the first call there is nothing to look back on
        if rule.searches:
            due &= state.learning_rate > 0  # or else nothing was found yet, and no step is taken
        renew = functools.partial(_renew, rule, probe, context, scale, planned)
        if isinstance(every, int) and every == 1 and not (probe.looks_back or rule.searches):
            state, overshot = renew(state)
        else:
            state, overshot = jax.lax.cond(due, renew, lambda state: (state, state.learning_rate < 0), state)

        # A rate at which the loss is known to be NaN or infinite is not tried on the parameters, or not left there.
        unsafe = state.info.status == ProbeStatus.OVERSHOOT
        applied = jnp.where(unsafe, 0, state.learning_rate * scale)
        state = state._replace(count=optax.safe_increment(state.count), applied_learning_rate=applied)
        if not probe.looks_back:
            return _loss.scale(updates, applied), state
        # What the next probes judge starts here (after steps that overshot, too: they are answered for) or, after a
        # step back, where that leads: to where the memory is.
        begins = (_control.begins(rule, state.count) | overshot) & ~unsafe
        memory = jax.lax.cond(begins, lambda: params, lambda: state.memory)
        back = probe.judged(context._replace(memory=memory))
        return _taken_back(unsafe, back, _loss.scale(updates, applied)), state._replace(memory=memory)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def gen(base: optax.GradientTransformation, **options: Any) -> optax.GradientTransformationExtraArgs:
    """A base optimizer of learning rate 1 with the learning rate that GeN finds for it.

    The same as `optax.chain(base, scale_by_gen(**options))`, but for one service: where `update` is given `value` and
    no `grad`, the incoming gradient is handed on as `grad`, since both are then of one batch. It has to be the raw one,
    then: clip inside of `base`. (Not with complex parameters: what goes into an optimizer there is the conjugate of the
    gradient.)

    Args:
      base: the base optimizer, at learning rate 1: `optax.adamw(1.0)`, `optax.sgd(1.0, momentum=0.9)`, or a chain such
        as `optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0))`. Weight decay belongs in it.
      **options: those of :func:`gen_optax.scale_by_gen`, by name.

    Returns:
      A transformation; for the arguments of its `update` see :func:`gen_optax.scale_by_gen`.

    Raises:
      ValueError: if `base` is no transformation; from `init`, if its updates must not be scaled (`optax.MultiSteps`,
        `optax.lookahead`, `optax.contrib.schedule_free`, ...), with what to write instead.

    Examples:
      >>> import gen_optax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> tx = gen_optax.gen(optax.sgd(1.0, momentum=0.9))
      >>> def loss_fn(w): return jnp.sum((w - 3.0) ** 2)
      >>> w = jnp.zeros(2)
      >>> state = tx.init(w)
      >>> @jax.jit
      ... def step(w, state):
      ...   value, grads = jax.value_and_grad(loss_fn)(w)
      ...   updates, state = tx.update(grads, state, w, value=value, value_fn=loss_fn)
      ...   return optax.apply_updates(w, updates), state
      >>> for _ in range(300):
      ...   w, state = step(w, state)
      >>> print(jnp.round(w, 2))
      [3. 3.]
    """
    if not (hasattr(base, "init") and hasattr(base, "update")):
        raise ValueError(f"gen needs an optax transformation as its base, for example optax.adamw(1.0), got {base!r}.")
    chained = optax.chain(base, scale_by_gen(**options))

    def init_fn(params):
        state = chained.init(params)
        _company.refuse_base(state)
        return state

    def update_fn(updates, state, params=None, *, value=None, grad=None, **extra_args):
        if grad is None and value is not None and not any(map(jnp.iscomplexobj, jax.tree.leaves(updates))):
            grad = updates
        return chained.update(updates, state, params, **_given(value=value, grad=grad), **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


# So that help(), editors and optax.inject_hyperparams see the options by name.
gen.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("base", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in inspect.signature(scale_by_gen).parameters.values()),
    ]
)


def _find(rule: _control.Rule, context: _probe.Context, unknown: jax.Array, state: GenState) -> GenState:
    """The state with a rate to begin with, and where the search for a better one begins."""
    found, start, status = _control.first_rate(context, state.learning_rate, unknown)
    return state._replace(
        learning_rate=_control.bound(rule, found),
        first_learning_rate=_control.bound(rule, start),
        info=state.info._replace(status=status),
    )


def _renew(
    rule: _control.Rule,
    probe: _probe.Probe,
    context: _probe.Context,
    scale: jax.Array,
    planned: jax.Array,
    state: GenState,
) -> tuple[GenState, jax.Array]:
    """The state after a probe: averages, learning rate and info; count and memory as they were. And if it overshot."""
    learning_rate, dtype = state.learning_rate, state.learning_rate.dtype
    if probe.looks_back:
        step_size = state.applied_learning_rate
    else:
        step_size = learning_rate * scale if probe.independent else learning_rate
    measured = probe.measure(context._replace(step_size=step_size))
    measured = jax.lax.stop_gradient(jax.tree.map(lambda x: x.astype(dtype), measured))
    finite = _axes.everywhere(_loss.all_finite(probe.judged(context)), context.axis_name)
    _axes.require_agreement((measured, finite), learning_rate, context.axis_name)
    status = _control.judge(measured, finite)
    accepted = status == ProbeStatus.ACCEPTED
    learning_rate, averages, overshot = _control.advance(
        rule,
        learning_rate,
        state.first_learning_rate,
        state.averages,
        state.info.num_probes,
        measured,
        step_size,
        status,
        probe.independent,
        probe.looks_back,
        planned,
    )
    losses = state.losses
    if rule.searches:
        known = state.first_learning_rate, state.info.num_probes
        learning_rate, losses = _control.watch(rule, losses, learning_rate, *known, measured, planned, probe.looks_back)
    unit, minimizer = _fit.nonzero(step_size), _fit.minimizer(measured.slope, measured.curvature)
    info = GenInfo(
        value=measured.value,
        slope=measured.slope / unit,
        curvature=measured.curvature / unit / unit,
        optimal_learning_rate=step_size * jnp.where(step_size > 0, minimizer, 0),  # at 0 there may be none: inf
        r_squared=measured.r_squared,
        status=status,
        accepted=accepted,
        num_probes=optax.safe_increment(state.info.num_probes),
        num_accepted=state.info.num_accepted + accepted.astype(jnp.int32),
    )
    return state._replace(learning_rate=learning_rate, averages=averages, losses=losses, info=info), overshot


def _given(**extra_args: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: extra for name, extra in extra_args.items() if extra is not None}


def _taken_back(unsafe: jax.Array, step: optax.Updates, updates: optax.Updates) -> optax.Updates:
    """The updates or, where it was unsafe, the opposite of the step judged, in the dtypes of the updates."""

    def choose(d, u):
        return jnp.where(unsafe, (-d).astype(u.dtype), u) if _loss.is_inexact(u) else u

    return jax.tree.map(choose, step, updates)


def _decay(num_steps: Any, decay: optax.Schedule | None, count: jax.Array, dtype: Any) -> jax.Array:
    if decay is not None:
        return jnp.asarray(decay(count), dtype)
    if num_steps is None:
        return jnp.ones((), dtype)
    return jnp.clip(4 * (1 - count.astype(dtype) / num_steps), 0, 1).astype(dtype)


def _check(**settings: Any) -> None:
    """Raises a ValueError on a setting outside its range. Traced numbers (inject_hyperparams) are taken as they are."""

    def require(name, condition, what):
        setting = settings[name]
        has_default = name in ("every", "smoothing", "smooth")
        if (setting is None and not has_default) or isinstance(setting, jax.Array | np.ndarray):
            return
        if not condition(setting):
            raise ValueError(f"{name} must be {what}, got {setting!r}.")

    def number(x):
        return isinstance(x, int | float | np.number) and not isinstance(x, bool) and np.isfinite(x)

    def positive(x):
        return number(x) and x > 0

    def whole(x):
        return isinstance(x, int | np.integer) and not isinstance(x, bool) and x >= 1

    require("init_learning_rate", positive, "a positive number, or None to have it found")
    require("every", whole, "a whole number of at least 1")
    require("smoothing", lambda x: number(x) and 0 <= x < 1, "in [0, 1)")
    require(
        "smooth",
        ("learning_rate", "log", "coefficients").__contains__,
        '"learning_rate", "log" or "coefficients"',
    )
    require("max_change", lambda x: number(x) and x > 1, "greater than 1, or None for no clamp")
    require("sigma", positive, "a positive number")
    require("num_steps", whole, "a whole number of at least 1, or None for no decay")
    require("decay", callable, "an optax schedule, a function of the step count")
    require("min_learning_rate", positive, "a positive number")
    require("max_learning_rate", positive, "a positive number")
    require("value_fn", callable, "a function of the parameters")
    require("probe", lambda x: hasattr(x, "measure"), "finite_difference(...), exact(...) or retrospective()")
    low, high = settings["min_learning_rate"], settings["max_learning_rate"]
    if number(low) and number(high) and low > high:
        raise ValueError(f"min_learning_rate must not exceed max_learning_rate, got {low} and {high}.")
