"""Denoising diffusion of scikit-learn's 8x8 digits (Ho et al., 2020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models.mlp import MLP
from benchmarks.workload import Workload
from benchmarks.workloads._common import Arrays, batches_of, flax_functions, mean_over
from benchmarks.workloads.digits import digits_splits

_NUM_PIXELS = 64
_NUM_FREQUENCIES = 16  # of the embedding of time
_NUM_TIMES = 10  # at which the evaluation sees an image


def diffusion_digits(tiny: bool = False) -> Workload:
    """Mean squared error of the noise that a network finds in `cos(pi t / 2) image + sin(pi t / 2) noise`.

    Noise and time are drawn from the step's key in training and fixed in evaluation.
    """
    digits = digits_splits()
    splits = {name: _with_noise(_images(part)) for name, part in digits.items()}
    module = MLP(widths=(32,) if tiny else (256, 256, 256), num_classes=_NUM_PIXELS, activation=nn.silu)
    init, apply = flax_functions(module, np.zeros((1, _NUM_PIXELS + 2 * _NUM_FREQUENCIES), np.float32))

    def losses(params, model_state, batch):
        angle = jnp.pi / 2 * batch["time"][:, None]
        noisy = jnp.cos(angle) * batch["x"] + jnp.sin(angle) * batch["noise"]
        found, _ = apply(params, model_state, jnp.concatenate([noisy, _embedded(batch["time"])], axis=1))
        return ((found - batch["noise"]) ** 2).astype(jnp.float32).mean(axis=1)

    def loss_fn(params, model_state, batch, key):
        x = batch["x"]
        noise_key, time_key = jax.random.split(key)
        drawn = {
            "noise": jax.random.normal(noise_key, x.shape, x.dtype),
            "time": jax.random.uniform(time_key, x.shape[:1], x.dtype),
        }
        return losses(params, model_state, {"x": x, **drawn}).mean(), model_state

    def per_example(params, model_state, batch):
        return {"loss": losses(params, model_state, batch)}

    return Workload(
        name="diffusion_digits",
        base="adamw",
        weight_decay=0.01,
        num_steps=20 if tiny else 1500,
        batch_size=128,
        metric="loss",
        higher_is_better=False,
        init=init,
        loss_fn=loss_fn,
        batches=batches_of(_images(digits["train"])),
        evaluate=mean_over(per_example, splits),
    )


def _embedded(time: jax.Array) -> jax.Array:
    """Sines and cosines of 1 to 1,000 radians in the unit of time, `[batch, 2 * _NUM_FREQUENCIES]`."""
    angles = time[:, None] * jnp.geomspace(1, 1000, _NUM_FREQUENCIES, dtype=time.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def _images(digits: Arrays) -> Arrays:
    """Pixels in [-1, 1]."""
    return {"x": 2 * digits["x"].reshape(-1, _NUM_PIXELS) - 1}


def _with_noise(images: Arrays) -> Arrays:
    """Each image at `_NUM_TIMES` times, one in each interval of a grid; over all images the times are a finer grid."""
    x = images["x"].repeat(_NUM_TIMES, axis=0)
    within = (np.arange(len(images["x"])) + 0.5) / len(images["x"])
    time = (np.arange(_NUM_TIMES) + within[:, None]) / _NUM_TIMES
    noise = np.random.default_rng(0).standard_normal(x.shape, np.float32)
    return {"x": x, "time": time.ravel().astype(np.float32), "noise": noise}
