"""What a workload is: a model, its data and its metric, with nothing said about the optimizer.

A workload is a frozen description; everything random comes from a key or a seed that is passed in, so the same
cell (workload, method, seed) is the same computation on every run.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax

Batch = Mapping[str, jax.typing.ArrayLike]
"""Arrays whose leading axis is the batch."""
Params = Any
ModelState = Any
"""What the forward pass updates beside the parameters (batch statistics); ``{}`` where there is none."""
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Workload:
    """One training problem.

    Attributes:
      name: unique, as typed on the command line.
      base: the base optimizer of the published experiment, ``"sgd"`` (momentum 0.9) or ``"adamw"``.
      weight_decay: passed to the base optimizer; part of the problem, the same for every method.
      num_steps: length of one training run.
      batch_size: examples per step; equal to the training set's size for a full-batch problem.
      metric: name of the metric that decides, a key of what ``evaluate`` returns.
      higher_is_better: the metric's direction.
      init: ``key -> (params, model_state)``.
      loss_fn: ``(params, model_state, batch, key) -> (loss, new_model_state)``, the training loss; ``key`` feeds
        dropout and the like.
      batches: ``(seed, batch_size) -> iterator`` of training batches, endless, of one shape, deterministic per seed.
      evaluate: ``(params, model_state, split) -> {"loss": ..., metric: ...}`` in evaluation mode, Python floats.
      trainable: ``params -> tree of bool``; ``None``: everything is trained.
    """

    name: str
    base: Literal["sgd", "adamw"]
    weight_decay: float
    num_steps: int
    batch_size: int
    metric: str
    higher_is_better: bool
    init: Callable[[jax.Array], tuple[Params, ModelState]]
    loss_fn: Callable[[Params, ModelState, Batch, jax.Array], tuple[jax.Array, ModelState]]
    batches: Callable[[int, int], Iterator[Batch]]
    evaluate: Callable[[Params, ModelState, Split], dict[str, float]]
    trainable: Callable[[Params], Any] | None = None
