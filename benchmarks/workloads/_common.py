"""What the workloads share: splits, batches in the order of a seed, evaluation in chunks, and classifiers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.workload import Batch, Split, Workload

Arrays = dict[str, np.ndarray]
"""A data set: arrays whose leading axis runs over the examples."""
Splits = Mapping[Split, Arrays]

_EVALUATION_CHUNK = 256


def classifier(*, module: nn.Module, splits: Splits, **settings: Any) -> Workload:
    """A workload on `{"x", "y"}` with softmax cross-entropy; `module(x, train=...)` returns logits."""
    init, apply = flax_functions(module, splits["train"]["x"][:1])

    def loss_fn(params, model_state, batch, key):
        logits, model_state = apply(params, model_state, batch["x"], key)
        return cross_entropy(logits, batch["y"]).mean(), model_state

    def per_example(params, model_state, batch):
        logits, _ = apply(params, model_state, batch["x"])
        return {"loss": cross_entropy(logits, batch["y"]), "accuracy": jnp.argmax(logits, -1) == batch["y"]}

    defaults = dict(
        metric="accuracy",
        higher_is_better=True,
        init=init,
        loss_fn=loss_fn,
        batches=batches_of(splits["train"]),
        evaluate=mean_over(per_example, splits),
    )
    return Workload(**{**defaults, **settings})


def flax_functions(module: nn.Module, example: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`init(key) -> (params, model_state)` and `apply(params, model_state, x, key=None) -> (outputs, model_state)`.

    With a key `apply` trains: dropout draws from it, batch norm uses the batch and returns new statistics.
    """

    def init(key):
        variables = dict(module.init(key, example, train=False))
        return variables.pop("params"), variables

    def apply(params, model_state, x, key=None):
        variables = {"params": params, **model_state}
        if key is None:
            return module.apply(variables, x, train=False), model_state
        outputs, changed = module.apply(variables, x, train=True, rngs={"dropout": key}, mutable=list(model_state))
        return outputs, {**model_state, **changed}

    return jax.jit(init), apply


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Per example or token, in float32 whatever the precision of the network."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def split_off(arrays: Arrays, count: int, seed: int = 0) -> tuple[Arrays, Arrays]:
    """What remains, and `count` examples drawn without replacement; always the same ones."""
    order = np.random.default_rng(seed).permutation(_length(arrays))
    return take(arrays, np.sort(order[count:])), take(arrays, np.sort(order[:count]))


def take(arrays: Arrays, index: Any) -> Arrays:
    """The examples of an index array or a slice."""
    return {name: array[index] for name, array in arrays.items()}


def batches_of(arrays: Arrays, augment: Callable[..., Arrays] | None = None) -> Callable[[int, int], Iterator[Batch]]:
    """`Workload.batches`: one shuffled pass after another without a break, so that any batch size fits.

    `augment(arrays, rng)` changes a batch. A batch as large as the data set is the data set.
    """

    def batches(seed: int, batch_size: int) -> Iterator[Batch]:
        if batch_size == _length(arrays) and augment is None:
            while True:
                yield arrays
        rng = np.random.default_rng(seed)
        waiting = np.empty(0, np.int64)
        while True:
            while len(waiting) < batch_size:
                waiting = np.concatenate([waiting, rng.permutation(_length(arrays))])
            batch = take(arrays, waiting[:batch_size])
            waiting = waiting[batch_size:]
            yield batch if augment is None else augment(batch, rng)

    return batches


def mean_over(per_example: Callable[..., dict[str, jax.Array]], splits: Splits, chunk: int = _EVALUATION_CHUNK):
    """`Workload.evaluate`: the means over a split of what `per_example(params, model_state, batch)` returns."""
    over = map_over(per_example, splits, chunk)

    def evaluate(params, model_state, split):
        return {
            name: float(np.mean(values, dtype=np.float64)) for name, values in over(params, model_state, split).items()
        }

    return evaluate


def map_over(function: Callable[..., dict[str, jax.Array]], splits: Splits, chunk: int = _EVALUATION_CHUNK):
    """`(params, model_state, split) -> {name: array}`: a function of batches over all examples, `chunk` at a time.

    The last chunk is filled up with the first examples, whose second results are dropped: one compiled shape.
    """
    compiled = jax.jit(function)

    def over(params, model_state, split):
        arrays = splits[split]
        length = _length(arrays)
        size = min(chunk, length)
        index = np.arange(-(-length // size) * size).reshape(-1, size) % length
        results = [jax.device_get(compiled(params, model_state, take(arrays, part))) for part in index]
        return {name: np.concatenate([result[name] for result in results])[:length] for name in results[0]}

    return over


def _length(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))
