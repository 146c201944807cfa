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


def main() -> None:
    """Trains, prints, draws."""
    parser = argparse.ArgumentParser(prog="python -m gen_optax.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="training runs per method (default: 3)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo.png"), help="where to draw")
    arguments = parser.parse_args()

    data = load()
    cosine = optax.cosine_decay_schedule(USUAL_RATE, NUM_STEPS)
    methods = {
        "GeN-AdamW": (gen_optax.gen(optax.adamw(1.0), num_steps=NUM_STEPS), None),
        "AdamW, usual rate": (optax.adamw(USUAL_RATE), lambda count: np.full(np.shape(count), USUAL_RATE)),
        "AdamW, cosine": (optax.adamw(cosine), cosine),
    }
    runs: dict[str, list[Run]] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns) as progress:
        for name, (tx, schedule) in methods.items():
            task = progress.add_task(name, total=arguments.seeds * NUM_STEPS)
            trainer = Trainer(tx, schedule, data)
            advance = functools.partial(progress.advance, task)
            runs[name] = [trainer.run(seed, advance) for seed in range(arguments.seeds)]
            history = runs[name][0].history
            if history is not None:
                probe = trainer.last_probe(0, history)

    Console(width=100).print(table(runs))
    draw(runs, probe, arguments.output)
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


class Trainer:
    """One method: compiled once, so that no step's time holds the compilation, and run with any seed."""

    def __init__(self, tx: Any, schedule: Any, data: Any):
        """`schedule` is that of the applied rate, None where GeN finds it."""
        self.tx, self.schedule, self.data = optax.with_extra_args_support(tx), schedule, data
        chunk = jax.jit(lambda carry, batches: jax.lax.scan(self.step, carry, batches), donate_argnums=0)
        self.run_chunk = chunk.lower(self.start(0), jnp.zeros((CHUNK, BATCH_SIZE), int)).compile()

    def start(self, seed: int) -> Any:
        """Parameters and optimizer state before the first step."""
        params = jax.jit(Net().init)(jax.random.key(seed), self.data[0][:1])
        return params, self.tx.init(params)

    def step(self, carry: Any, batch: jax.Array) -> Any:
        """One training step on the images of these indices."""
        params, state = carry
        x, y = self.batch(batch)
        value, grads = jax.value_and_grad(loss_fn)(params, x, y)
        updates, state = self.tx.update(grads, state, params, value=value, value_fn=loss_fn, x=x, y=y)
        metrics = gen_optax.metrics(state) if self.schedule is None else {}
        return (optax.apply_updates(params, updates), state), (value, metrics)

    def batch(self, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Training images and labels."""
        return self.data[0][indices], self.data[1][indices]

    def chunks(self, seed: int) -> jax.Array:
        """The indices of all batches of a run, shape `(NUM_STEPS / CHUNK, CHUNK, BATCH_SIZE)`."""
        generator = np.random.default_rng(seed)
        draws = [generator.choice(len(self.data[1]), BATCH_SIZE, replace=False) for _ in range(NUM_STEPS)]
        return jnp.asarray(draws).reshape(-1, CHUNK, BATCH_SIZE)

    def run(self, seed: int, advance: Any) -> Run:
        """One training run; `advance` is told of the steps that are done."""
        carry, outputs, seconds = self.start(seed), [], []
        for indices in self.chunks(seed):
            started = time.perf_counter()
            carry, output = jax.block_until_ready(self.run_chunk(carry, indices))
            seconds.append((time.perf_counter() - started) / CHUNK)
            outputs.append(output)
            advance(CHUNK)
        losses, history = jax.tree.map(lambda *x: np.concatenate(x), *outputs)
        train_x, train_y, test_x, test_y = self.data
        params, state = carry
        found = self.schedule is None
        model = gen_optax.averaged_params(state, params) if found else params
        predictions = jnp.argmax(jnp.asarray(Net().apply(model, test_x)), -1)
        return Run(
            losses=losses,
            learning_rates=history["applied_learning_rate"]
            if found
            else np.asarray(self.schedule(np.arange(NUM_STEPS))),
            train_loss=float(loss_fn(model, train_x, train_y)),
            test_accuracy=float(jnp.mean(predictions == test_y)),
            seconds_per_step=float(np.median(seconds)),
            history=history if found else None,
        )

    def last_probe(self, seed: int, history: dict[str, np.ndarray]) -> tuple[int, Any, Any, Any, float]:
        """The last accepted probe of a run: its step, fit, step sizes, losses along the step, and the rate applied.

        Of the first three quarters, that is: near the end of the decay nothing is left to see along a step.
        """
        accepted = np.flatnonzero(np.diff(history["num_accepted"], prepend=0))
        probed = int(accepted[accepted < NUM_STEPS * 3 // 4][-1])
        fit = {name: column[probed] for name, column in history.items()}
        # Run again up to there. The probe looked back: from where its path starts along the steps since, on the batch
        # of the step to come.
        carry, chunks, step = self.start(seed), self.chunks(seed), jax.jit(self.step)
        for indices in chunks[: probed // CHUNK]:
            carry, _ = self.run_chunk(carry, indices)
        for indices in chunks[probed // CHUNK, : probed % CHUNK]:
            carry, _ = step(carry, indices)
        ahead, state = carry
        behind, applied = state[-1].probe.anchor, state[-1].applied_learning_rate
        direction = jax.tree.map(lambda new, old: (new - old) / applied, ahead, behind)
        step_sizes = jnp.maximum(applied, fit["optimal_learning_rate"]) * jnp.linspace(-0.5, 2, 17)
        x, y = self.batch(chunks[probed // CHUNK, probed % CHUNK])
        losses = gen_optax.probe_losses(lambda w: loss_fn(w, x, y), behind, direction, step_sizes)
        return probed + 1, fit, step_sizes, losses, float(applied)


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


def draw(runs: dict[str, list[Run]], probe: tuple[int, Any, Any, Any, float], path: pathlib.Path) -> None:
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

    at, fit, step_sizes, losses, applied = probe
    plot.parabola(fit, step_sizes, losses, learning_rate=applied, ax=right)
    right.set_title(f"An accepted probe, at step {at}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
