"""GeN around the base optimizers that are used most, each at learning rate 1.

One line each, as `gen` takes any other base as well: `gen(optax.lamb(1.0))`.
"""

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack

import optax

from gen_optax import _renamed
from gen_optax._controller import Controller
from gen_optax._gen import gen
from gen_optax._probe import Probe

P = ParamSpec("P")
R = TypeVar("R")


class Options(TypedDict, total=False):
    """The keyword arguments of `gen`."""

    controller: Controller | None
    probe: Probe | None
    every: int | None
    num_steps: int | None
    decay: optax.Schedule | None
    average: Any
    min_learning_rate: float | None
    max_learning_rate: float | None
    axis_name: Any
    value_fn: Callable[..., Any] | None


def _with_named_options(alias: Callable[P, R]) -> Callable[P, R]:
    """Puts the options of `gen` in the place of `**options`: help() and optax.inject_hyperparams read them there."""
    own = list(inspect.signature(alias).parameters.values())[:-1]
    options = list(inspect.signature(gen).parameters.values())[1:]
    alias.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    return _renamed.says_what_to_write(alias)


@_with_named_options
def gen_sgd(
    *, momentum: float | None = None, nesterov: bool = False, **options: Unpack[Options]
) -> optax.GradientTransformationExtraArgs:
    """`gen(optax.sgd(1.0, momentum, nesterov), **options)`.

    Args:
      momentum: decay of the momentum; None for none.
      nesterov: whether to use Nesterov's momentum.
      **options: those of :func:`gen_optax.scale_by_gen`, by name.

    Returns:
      The transformation.

    Examples:
      >>> import gen_optax
      >>> tx = gen_optax.gen_sgd(momentum=0.9, num_steps=1000)
    """
    return gen(optax.sgd(1.0, momentum, nesterov), **options)


@_with_named_options
def gen_adam(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, **options: Unpack[Options]
) -> optax.GradientTransformationExtraArgs:
    """`gen(optax.adam(1.0, b1, b2, eps), **options)`.

    Args:
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      **options: those of :func:`gen_optax.scale_by_gen`, by name.

    Returns:
      The transformation.

    Examples:
      >>> import gen_optax
      >>> tx = gen_optax.gen_adam(b2=0.95)
    """
    return gen(optax.adam(1.0, b1, b2, eps), **options)


@_with_named_options
def gen_adamw(
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Any = None,
    **options: Unpack[Options],
) -> optax.GradientTransformationExtraArgs:
    """`gen(optax.adamw(1.0, b1, b2, eps, weight_decay=weight_decay, mask=mask), **options)`.

    Args:
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: multiplied, as in optax, by the learning rate that is applied.
      mask: tree of booleans, or a function from parameters to one: which leaves decay.
      **options: those of :func:`gen_optax.scale_by_gen`, by name.

    Returns:
      The transformation.

    Examples:
      >>> import gen_optax
      >>> tx = gen_optax.gen_adamw(weight_decay=0.1, num_steps=1000)
    """
    return gen(optax.adamw(1.0, b1, b2, eps, weight_decay=weight_decay, mask=mask), **options)


@_with_named_options
def gen_lion(
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 1e-3,
    mask: Any = None,
    **options: Unpack[Options],
) -> optax.GradientTransformationExtraArgs:
    """`gen(optax.lion(1.0, b1, b2, weight_decay=weight_decay, mask=mask), **options)`.

    The rate ends too high on noisy batches, since probes do not count the scatter of steps that are all of one length:
    set `max_learning_rate`, or take AdamW. See "When it does not work".

    Args:
      b1: weight of the momentum in the step's sign.
      b2: decay of the momentum.
      weight_decay: multiplied, as in optax, by the learning rate that is applied.
      mask: tree of booleans, or a function from parameters to one: which leaves decay.
      **options: those of :func:`gen_optax.scale_by_gen`, by name.

    Returns:
      The transformation.

    Examples:
      >>> import gen_optax
      >>> tx = gen_optax.gen_lion(num_steps=1000)
    """
    return gen(optax.lion(1.0, b1, b2, weight_decay=weight_decay, mask=mask), **options)
