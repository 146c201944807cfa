"""`python -m gen_optax.demo`: a small network on handwritten digits, with no learning rate given.

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
NUM_STEPS, BATCH_SIZE, CHUNK = 1000, 64, 50


class Net(nn.Module):
    """Three dense layers, 26,000 parameters."""

    @nn.compact
    def __call__(self, x):
        """Images of shape `(batch, 64)` to logits of shape `(batch, 10)`."""
        for _ in range(2):
            x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10)(x)


class Run(NamedTuple):
    """What one training run leaves."""

    losses: np.ndarray  # training loss of each step, on its batch
    learning_rates: np.ndarray  # as applied
    train_loss: float  # at the end, on the whole training set
    test_accuracy: float
    seconds_per_step: float  # median over chunks, without the compilation
    history: dict[str, np.ndarray] | None  # gen_optax.metrics of each step
    last_fit: Any  # the last accepted probe: its step, fit, step sizes, losses along the step, and the rate applied


def main() -> None:
    """Trains, prints, draws."""
    parser = argparse.ArgumentParser(prog="python -m gen_optax.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="training runs per method (default: 3)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo.png"), help="where to draw")
    arguments = parser.parse_args()

    data = load()
    schedule = optax.cosine_decay_schedule(USUAL_RATE, NUM_STEPS)
    methods = {
        "GeN-AdamW": gen_optax.gen(optax.adamw(1.0), num_steps=NUM_STEPS),
        "AdamW, usual rate": optax.adamw(USUAL_RATE),
        "AdamW, cosine": optax.adamw(schedule),
    }
    rates = [None, lambda t: np.full(np.shape(t), USUAL_RATE), schedule]
    runs: dict[str, list[Run]] = {name: [] for name in methods}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns) as progress:
        for (name, tx), rate in zip(methods.items(), rates, strict=True):
            task = progress.add_task(name, total=arguments.seeds * NUM_STEPS)
            for seed in range(arguments.seeds):
                runs[name].append(train(tx, rate, data, seed, functools.partial(progress.advance, task)))

    Console(width=100).print(table(runs))
    draw(runs, arguments.output)
    print(f"Curves and the last parabola: {arguments.output}")


def load() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The digits that scikit-learn ships: training images and labels, test images and labels."""
    digits = load_digits()
    images = (digits.data / 16).astype(np.float32)
    split = train_test_split(images, digits.target, test_size=360, random_state=0, stratify=digits.target)
    train_x, test_x, train_y, test_y = map(jnp.asarray, split)
    return train_x, train_y, test_x, test_y


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(Net().apply(params, x), y).mean()


def train(tx: Any, rate: Any, data: Any, seed: int, advance: Any) -> Run:
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

    generator = np.random.default_rng(seed)
    batches = jnp.asarray([generator.choice(len(train_y), BATCH_SIZE, replace=False) for _ in range(NUM_STEPS)])
    chunks = batches.reshape(-1, CHUNK, BATCH_SIZE)

    def start():
        params = jax.jit(Net().init)(jax.random.key(seed), train_x[:1])
        return params, tx.init(params)

    chunk = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches), donate_argnums=0)
    run_chunk = chunk.lower(start(), chunks[0]).compile()  # so that no step's time holds the compilation
    carry, outputs, seconds = start(), [], []
    for indices in chunks:
        started = time.perf_counter()
        carry, output = jax.block_until_ready(run_chunk(carry, indices))
        seconds.append((time.perf_counter() - started) / CHUNK)
        outputs.append(output)
        advance(CHUNK)
    params = carry[0]
    losses, history = jax.tree.map(lambda *x: np.concatenate(x), *outputs)
    last_fit = None
    if rate is None:
        # Go again to where the last accepted probe was made. It looked back: from the parameters before the last step
        # along that step, on the batch of the step to come.
        probed = int(np.flatnonzero(np.diff(history["num_accepted"], prepend=0))[-1])
        carry, jitted_step = start(), jax.jit(step)
        for indices in chunks[: probed // CHUNK]:
            carry, _ = run_chunk(carry, indices)
        for indices in chunks[probed // CHUNK, : probed % CHUNK]:
            carry, _ = jitted_step(carry, indices)
        ahead, state = carry
        behind = optax.tree.get(state, "memory").params
        applied = optax.tree.get(state, "applied_learning_rate")
        direction = jax.tree.map(lambda new, old: (new - old) / applied, ahead, behind)
        fit = {name: column[probed] for name, column in history.items()}
        step_sizes = jnp.maximum(applied, fit["optimal_learning_rate"]) * jnp.linspace(-0.5, 2, 17)
        x, y = train_x[batches[probed]], train_y[batches[probed]]
        along = gen_optax.probe_losses(lambda w: loss_fn(w, x, y), behind, direction, step_sizes)
        last_fit = probed + 1, fit, step_sizes, along, float(applied)
    predictions = jnp.argmax(jnp.asarray(Net().apply(params, test_x)), -1)
    return Run(
        losses=losses,
        learning_rates=history["applied_learning_rate"] if rate is None else np.asarray(rate(np.arange(NUM_STEPS))),
        train_loss=float(loss_fn(params, train_x, train_y)),
        test_accuracy=float(jnp.mean(predictions == test_y)),
        seconds_per_step=float(np.median(seconds)),
        history=history if rate is None else None,
        last_fit=last_fit,
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


def draw(runs: dict[str, list[Run]], path: pathlib.Path) -> None:
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

    at, fit, step_sizes, losses, applied = next(iter(runs.values()))[0].last_fit
    plot.parabola(fit, step_sizes, losses, learning_rate=applied, ax=right)
    right.set_title(f"The last accepted probe, at step {at}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
