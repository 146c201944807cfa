"""A workload small enough for tests: two clouds of points and one hidden layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.workload import Workload


def toy(**changes) -> Workload:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 384)
    points = (rng.normal(size=(384, 4)) + 1.5 * labels[:, None]).astype(np.float32)
    data = {name: (points[i::3], labels[i::3]) for i, name in enumerate(("train", "validation", "test"))}

    def logits(params, x):
        return jnp.tanh(x @ params["w0"] + params["b0"]) @ params["w1"]

    def loss_fn(params, model_state, batch, key):
        loss = optax.softmax_cross_entropy_with_integer_labels(logits(params, batch["x"]), batch["y"]).mean()
        return loss, {"seen": model_state["seen"] + 1}

    def init(key):
        a, b = jax.random.split(key)
        params = {
            "w0": jax.random.normal(a, (4, 8)) / 2,
            "b0": jnp.zeros(8),
            "w1": jax.random.normal(b, (8, 2)) / 3,
        }
        return params, {"seen": jnp.zeros(())}

    def batches(seed, batch_size):
        order = np.random.default_rng(seed)
        while True:
            chosen = order.integers(0, 128, batch_size)
            yield {"x": data["train"][0][chosen], "y": data["train"][1][chosen]}

    def evaluate(params, model_state, split):
        x, y = data[split]
        z = logits(params, x)
        return {
            "loss": float(optax.softmax_cross_entropy_with_integer_labels(z, y).mean()),
            "accuracy": float(np.mean(np.argmax(z, 1) == y)),
        }

    settings = dict(
        name="toy",
        base="adamw",
        weight_decay=1e-3,
        num_steps=40,
        batch_size=16,
        metric="accuracy",
        higher_is_better=True,
        init=init,
        loss_fn=loss_fn,
        batches=batches,
        evaluate=evaluate,
    )
    return Workload(**{**settings, **changes})
