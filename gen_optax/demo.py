"""`python -m gen_optax.demo`: a small convolutional network on handwritten digits, with no learning rate given.

Trains the same flax network three times per seed: with GeN around AdamW, with AdamW at its usual rate, and with AdamW
and a cosine schedule from that rate. Prints a table and draws `demo.png`. Needs `pip install "gen-optax[demo]"`.
"""

import argparse
import functools
import pathlib
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gen_optax

USUAL_RATE = 1e-3
NUM_STEPS, BATCH_SIZE, CHUNK = 800, 64, 40


class Net(nn.Module):
    """Two convolutions and two dense layers, 38,000 parameters."""

    @nn.compact
    def __call__(self, x):
        """Images of shape `(batch, 8, 8, 1)` to logits of shape `(batch, 10)`."""
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        x = x.reshape(len(x), -1)
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


class Run(NamedTuple):
    """What one training run leaves."""

    losses: np.ndarray  # training loss of each step, on its batch
    learning_rates: np.ndarray  # as applied
    train_loss: float  # at the end, on the whole training set
    test_accuracy: float
    seconds_per_step: float  # median over chunks, without the compilation
    history: dict[str, np.ndarray] | None  # gen_optax.metrics of each step
    last_step: Any  # parameters, direction and batch of the last step, for the parabola


def main() -> None:
    """Trains, prints, draws."""
    parser = argparse.ArgumentParser(prog="python -m gen_optax.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="training runs per method (default: 3)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo.png"), help="where to draw")
    arguments = parser.parse_args()

    data = load()
    base = optax.adamw(1.0)
    schedule = optax.cosine_decay_schedule(USUAL_RATE, NUM_STEPS)
    methods = {
        "GeN-AdamW, no learning rate": gen_optax.gen(base, num_steps=NUM_STEPS),
        f"AdamW at its usual {USUAL_RATE:g}": optax.adamw(USUAL_RATE),
        f"AdamW, cosine from {USUAL_RATE:g}": optax.adamw(schedule),
    }
    rates = [None, lambda t: np.full(np.shape(t), USUAL_RATE), schedule]
    runs: dict[str, list[Run]] = {name: [] for name in methods}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns) as progress:
        for (name, tx), rate in zip(methods.items(), rates, strict=True):
            task = progress.add_task(name, total=arguments.seeds * NUM_STEPS)
            for seed in range(arguments.seeds):
                runs[name].append(train(tx, base, rate, data, seed, functools.partial(progress.advance, task)))

    Console().print(table(runs))
    draw(runs, data, arguments.output)
    print(f"Curves and the last parabola: {arguments.output}")


def load() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The digits that scikit-learn ships: training images and labels, test images and labels."""
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    split = train_test_split(images, digits.target, test_size=360, random_state=0, stratify=digits.target)
    train_x, test_x, train_y, test_y = map(jnp.asarray, split)
    return train_x, train_y, test_x, test_y


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(Net().apply(params, x), y).mean()


def train(tx: Any, base: Any, rate: Any, data: Any, seed: int, advance: Any) -> Run:
    """One training run; `rate` is the schedule of the applied rate, None where GeN finds it."""
    train_x, train_y, test_x, test_y = data
    tx = optax.with_extra_args_support(tx)

    def step(carry, batch):
        params, state = carry
        x, y = train_x[batch], train_y[batch]
        value, grads = jax.value_and_grad(loss_fn)(params, x, y)
        updates, state = tx.update(grads, state, params, value=value, value_fn=loss_fn, x=x, y=y)
        metrics = gen_optax.metrics(state) if rate is None else {}
        return (optax.apply_updates(params, updates), state), (value, metrics)

    chunk = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches), donate_argnums=0)
    generator = np.random.default_rng(seed)
    batches = jnp.asarray(
        [generator.choice(len(train_y), BATCH_SIZE, replace=False) for _ in range(NUM_STEPS)]
    ).reshape(-1, CHUNK, BATCH_SIZE)
    params = jax.jit(Net().init)(jax.random.key(seed), train_x[:1])
    carry = params, tx.init(params)
    run_chunk = chunk.lower(carry, batches[0]).compile()  # so that no step's time holds the compilation
    outputs, seconds = [], []
    for i in range(len(batches)):
        before = jax.tree.map(jnp.copy, carry)
        start = time.perf_counter()
        carry, output = jax.block_until_ready(run_chunk(carry, batches[i]))
        seconds.append((time.perf_counter() - start) / CHUNK)
        outputs.append(output)
        advance(CHUNK)
    params = carry[0]
    losses, history = jax.tree.map(lambda *x: np.concatenate(x), *outputs)
    last_step = None
    if rate is None:  # go over all but the last step of the last chunk again
        (w, state), _ = jax.jit(lambda c, b: jax.lax.scan(step, c, b))(before, batches[-1, :-1])
        x, y = train_x[batches[-1, -1]], train_y[batches[-1, -1]]
        direction, _ = base.update(jax.grad(loss_fn)(w, x, y), state[0], w)
        last_step = w, direction, x, y
    predictions = jnp.argmax(jnp.asarray(Net().apply(params, test_x)), -1)
    return Run(
        losses=losses,
        learning_rates=history["applied_learning_rate"] if rate is None else np.asarray(rate(np.arange(NUM_STEPS))),
        train_loss=float(loss_fn(params, train_x, train_y)),
        test_accuracy=float(jnp.mean(predictions == test_y)),
        seconds_per_step=float(np.median(seconds)),
        history=history if rate is None else None,
        last_step=last_step,
    )


def table(runs: dict[str, list[Run]]) -> Table:
    """Mean and spread over seeds."""
    seeds = len(next(iter(runs.values())))
    result = Table(
        title=f"Digits, {NUM_STEPS} steps of {BATCH_SIZE} images, mean and standard deviation of {seeds} seeds"
    )
    for heading in ("", "train loss", "test accuracy", "ms per step", "learning rate"):
        result.add_column(heading, justify="left" if not heading else "right")
    for name, of_seed in runs.items():
        loss = [run.train_loss for run in of_seed]
        accuracy = [100 * run.test_accuracy for run in of_seed]
        found = [run.history["learning_rate"] for run in of_seed if run.history is not None]
        rate = f"{np.median(found):.1g}, found" if found else f"{USUAL_RATE:g}, given"
        result.add_row(
            name,
            f"{np.mean(loss):.1e} ± {np.std(loss):.0e}",
            f"{np.mean(accuracy):.2f} ± {np.std(accuracy):.2f} %",
            f"{1e3 * np.median([run.seconds_per_step for run in of_seed]):.2f}",
            rate,
        )
    return result


def draw(runs: dict[str, list[Run]], data: Any, path: pathlib.Path) -> None:
    """Loss and learning-rate curves of the first seed, and the last parabola with the loss measured along the step."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # after the backend is chosen

    from gen_optax import plot

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for (name, of_seed), colour, line in zip(
        runs.items(), (plot.BLUE, plot.ORANGE, plot.GREEN), ("-", "--", ":"), strict=True
    ):
        run = of_seed[0]
        smooth = np.convolve(run.losses, np.ones(20) / 20, mode="valid")
        left.plot(np.arange(len(smooth)) + 20, smooth, line, color=colour, label=name)
        middle.plot(np.arange(1, NUM_STEPS + 1), run.learning_rates, line, color=colour, label=name)
    left.set(xlabel="step", ylabel="training loss, mean of 20 steps", yscale="log", title="Loss")
    left.legend(frameon=False)
    middle.set(xlabel="step", ylabel="learning rate as applied", yscale="log", title="Learning rate")

    gen = next(iter(runs.values()))[0]
    assert gen.history is not None
    last = {name: column[-1] for name, column in gen.history.items()}
    params, direction, x, y = gen.last_step
    step_sizes = last["learning_rate"] * np.linspace(-1.5, 1.5, 13)
    losses = gen_optax.probe_losses(lambda w: loss_fn(w, x, y), params, direction, step_sizes)
    plot.parabola(last, step_sizes, losses, ax=right)
    right.set_title(f"The last probe, step {NUM_STEPS}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
