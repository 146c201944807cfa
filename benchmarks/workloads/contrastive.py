"""Contrastive learning without labels (SimCLR, Chen et al., 2020): two random views of a digit have to find each other.

The loss is that of a batch as a whole, and both views are drawn anew at every step.
"""

import jax
import jax.numpy as jnp

from benchmarks.models.mlp import MLP
from benchmarks.workload import Workload
from benchmarks.workloads._common import batches_of, cross_entropy, flax_functions, mean_over
from benchmarks.workloads.digits import digits_splits

_TEMPERATURE = 0.2
_EVALUATION_CHUNK = 150  # half a split: every example has as many rivals as any other


def contrastive_digits(tiny: bool = False) -> Workload:
    """Scikit-learn's 8x8 digits, 128 at a time; two hidden layers, then a head with one.

    The metric is the loss on views and rivals that are always the same.
    """
    splits = digits_splits()
    init, apply = flax_functions(MLP(widths=(256, 256, 128), num_classes=32), splits["train"]["x"][:1])

    def losses(params, model_state, batch, key):
        views = [_view(view_key, batch["x"]) for view_key in jax.random.split(key)]
        return _nt_xent(apply(params, model_state, jnp.concatenate(views))[0])

    def loss_fn(params, model_state, batch, key):
        return losses(params, model_state, batch, key).mean(), model_state

    def per_example(params, model_state, batch):
        return {"loss": losses(params, model_state, batch, jax.random.key(0))}

    return Workload(
        name="contrastive_digits",
        base="sgd",
        weight_decay=0.0,
        num_steps=20 if tiny else 1500,
        batch_size=32 if tiny else 128,
        metric="loss",
        higher_is_better=False,
        init=init,
        loss_fn=loss_fn,
        batches=batches_of(splits["train"]),
        evaluate=mean_over(per_example, splits, _EVALUATION_CHUNK),
    )


def _nt_xent(embeddings: jax.Array) -> jax.Array:
    """Per example, of which `embeddings` `[2 n, d]` has the first views and then the second, the mean of its two."""
    count = len(embeddings) // 2
    lengths = jnp.sqrt(jnp.sum(embeddings**2, axis=1, keepdims=True) + 1e-12)
    unit = embeddings / lengths
    similarity = jnp.where(jnp.eye(2 * count, dtype=bool), -1e9, unit @ unit.T / _TEMPERATURE)
    partner = jnp.roll(jnp.arange(2 * count), count)
    return cross_entropy(similarity, partner).reshape(2, count).mean(axis=0)


def _view(key: jax.Array, x: jax.Array) -> jax.Array:
    """Images `[n, 8, 8, 1]` moved by up to a pixel each way, brighter or darker, noisy, a patch of 3x3 erased."""
    count, height, width, _ = x.shape
    shift, intensity, noise, patch = jax.random.split(key, 4)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = jax.random.randint(shift, (2, count), 0, 3)

    def moved(image, row, column):
        return jax.lax.dynamic_slice(image, (row, column, 0), (height, width, 1))

    seen = jax.vmap(moved)(padded, rows, columns)
    seen = seen * jax.random.uniform(intensity, (count, 1, 1, 1), minval=0.6, maxval=1.4)
    seen = seen + 0.1 * jax.random.normal(noise, x.shape)
    row, column = jax.random.randint(patch, (2, count, 1), 0, jnp.array([height, width])[:, None, None])
    in_rows, in_columns = abs(jnp.arange(height) - row) <= 1, abs(jnp.arange(width) - column) <= 1
    return jnp.where((in_rows[:, :, None] & in_columns[:, None, :])[..., None], 0, seen).astype(x.dtype)
