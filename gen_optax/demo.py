"""`python -m gen_optax.demo`: a language model with no learning rate given, beside a sweep of five that are.

Trains a small transformer on the characters of a text that comes with Python: with AdamW at five peak rates, each with
a warm-up and a cosine decay, and with GeN around AdamW. Prints the test losses and draws `demo.png`. Needs the extra
`demo`.
"""

import argparse
import functools
import pathlib
import pydoc_data.topics
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

import gen_optax

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""The peaks of the sweep, half a decade apart: what one tries who does not know the rate."""
SEEDS = 3
NUM_STEPS, CHUNK, BATCH_SIZE, LENGTH = 300, 50, 16, 32
SIZE, DPI = (11, 4.6), 120  # of the picture
_NAME = "GeN, no rate given"


class Transformer(nn.Module):
    """A causal language model of characters: two blocks, 33,000 parameters."""

    vocabulary: int
    width: int = 32

    @nn.compact
    def __call__(self, tokens):
        """Tokens `(batch, length)` to the logits of the next ones, `(batch, length, vocabulary)`."""
        x = nn.Embed(self.vocabulary, self.width)(tokens) + nn.Embed(LENGTH, self.width)(jnp.arange(tokens.shape[1]))
        for _ in range(2):
            x += nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x), mask=nn.make_causal_mask(tokens))
            x += nn.Dense(self.width)(nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


class Run(NamedTuple):
    """What one training run leaves."""

    losses: np.ndarray  # training loss of each step, on its batch
    learning_rates: np.ndarray  # as applied
    test_loss: float  # at the end, of the whole test set


def main() -> None:
    """Trains, prints, draws."""
    parser = argparse.ArgumentParser(prog="python -m gen_optax.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"training runs per row (default: {SEEDS})")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo.png"), help="where to draw")
    arguments = parser.parse_args()

    data = load()
    gen = gen_optax.gen(optax.adamw(1.0), num_steps=NUM_STEPS)
    columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    runs: dict[str, list[Run]] = {}
    terminal = Console()
    since = time.perf_counter()

    def done(stage: str) -> None:
        """In a pipe or a file nothing can be drawn over: one line for each stage, when it is finished."""
        nonlocal since
        before, since = since, time.perf_counter()
        if not terminal.is_terminal:
            print(f"{stage}: {since - before:.0f} s", flush=True)

    with Progress(*columns, console=terminal, disable=not terminal.is_terminal) as progress:
        for tx, rates in ((swept(), RATES), (gen, (1.0,))):
            task = progress.add_task("compiling", total=None)
            trainer = Trainer(tx, data)
            progress.remove_task(task)
            done("compiling")
            for rate in rates:
                name = f"AdamW, {rate:g}" if len(rates) > 1 else _NAME
                task = progress.add_task(name, total=arguments.seeds * NUM_STEPS)
                advance = functools.partial(progress.advance, task)
                runs[name] = [trainer.run(rate, seed, advance) for seed in range(arguments.seeds)]
                done(f"{name}, {arguments.seeds * NUM_STEPS} steps")

    console = Console(width=100)
    console.print(table(runs))
    console.print(verdict(runs))
    draw(runs, arguments.output)
    console.print(f"Losses and learning rates: {arguments.output}")


def load() -> tuple[np.ndarray, np.ndarray, int]:
    """Windows of the language reference inside Python, for training and for testing, and the number of characters."""
    text = "\n".join(pydoc_data.topics.topics.values())
    characters, tokens = np.unique(np.array(list(text)), return_inverse=True)
    tokens = tokens.astype(np.int32)
    split = len(tokens) * 9 // 10
    windows = np.lib.stride_tricks.sliding_window_view
    test = windows(tokens[split:], LENGTH + 1)[:: LENGTH + 1][:1000]
    return windows(tokens[:split], LENGTH + 1), test, len(characters)


def swept() -> optax.GradientTransformation:
    """AdamW with a warm-up over a twentieth of the steps and a cosine decay, to be multiplied by a peak rate."""
    return optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1.0, NUM_STEPS // 20, NUM_STEPS))


class Trainer:
    """One optimizer, compiled once and run with any peak rate and seed."""

    def __init__(self, tx: Any, data: tuple[np.ndarray, np.ndarray, int]):
        self.tx, (self.training, self.test, vocabulary) = optax.with_extra_args_support(tx), data
        self.model = Transformer(vocabulary)
        self.init = jax.jit(self.model.init)
        chunk = jax.jit(lambda rate, carry, batches: jax.lax.scan(functools.partial(self.step, rate), carry, batches))
        self.run_chunk = chunk.lower(1.0, self.start(0), self.batches(0)[0]).compile()
        self.test_loss = jax.jit(self.loss_fn).lower(self.start(0)[0], self.test).compile()

    def loss_fn(self, params: Any, batch: jax.Array) -> jax.Array:
        """Mean cross-entropy of the next characters."""
        logits = self.model.apply(params, batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    def start(self, seed: int) -> Any:
        """Parameters and optimizer state before the first step."""
        params = self.init(jax.random.key(seed), self.training[:1, :-1])
        return params, self.tx.init(params)

    def batches(self, seed: int) -> np.ndarray:
        """All batches of a run, in chunks."""
        chosen = np.random.default_rng(seed).integers(len(self.training), size=(NUM_STEPS // CHUNK, CHUNK, BATCH_SIZE))
        return self.training[chosen]

    def step(self, rate: jax.Array, carry: Any, batch: jax.Array) -> Any:
        """One training step: the lines that a training loop has anyway, and the loss handed over."""
        params, state = carry
        value, grads = jax.value_and_grad(self.loss_fn)(params, batch)
        updates, state = self.tx.update(grads, state, params, value=value, value_fn=self.loss_fn, batch=batch)
        updates = optax.tree.scale(rate, updates)
        found = optax.tree.get(state, "applied_learning_rate")
        return (optax.apply_updates(params, updates), state), (value, jnp.nan if found is None else found)

    def run(self, rate: float, seed: int, advance: Any) -> Run:
        """One training run; `advance` is told of the steps that are done."""
        carry, outputs = self.start(seed), []
        for batches in self.batches(seed):
            carry, output = jax.block_until_ready(self.run_chunk(rate, carry, batches))
            outputs.append(output)
            advance(CHUNK)
        losses, rates = jax.tree.map(lambda *x: np.concatenate(x), *outputs)
        if np.isnan(rates).all():
            rates = rate * optax.warmup_cosine_decay_schedule(0.0, 1.0, NUM_STEPS // 20, NUM_STEPS)(
                np.arange(NUM_STEPS)
            )
        return Run(losses, np.asarray(rates), float(self.test_loss(carry[0], self.test)))


def table(runs: dict[str, list[Run]]) -> Table:
    """Mean and spread over seeds."""
    seeds = len(next(iter(runs.values())))
    result = Table(title=f"Characters, {NUM_STEPS} steps: mean and standard deviation of {seeds} seeds")
    for heading in ("", "peak learning rate", "test loss"):
        result.add_column(heading, justify="left" if not heading else "right")
    for name, of_seed in runs.items():
        found = name == _NAME
        peak = np.median([np.max(run.learning_rates) for run in of_seed])
        losses = [run.test_loss for run in of_seed]
        row = name, f"{peak:.1g}, found" if found else f"{peak:g}", f"{np.mean(losses):.3f} ± {np.std(losses):.3f}"
        result.add_row(*row, style="bold" if found else None)
    return result


def verdict(runs: dict[str, list[Run]]) -> str:
    """How GeN did beside the sweep, whatever came out."""
    losses = {name: float(np.mean([run.test_loss for run in of_seed])) for name, of_seed in runs.items()}
    own = losses.pop(_NAME)
    best = min(losses, key=lambda name: losses[name] if np.isfinite(losses[name]) else np.inf)
    better = sum(own < loss or not np.isfinite(loss) for loss in losses.values())
    gap = own - losses[best]
    beside = f"{abs(gap):.3f} {'above' if gap > 0 else 'below'} the best of the sweep ({best})"
    return f"GeN ends {beside} and is better than {better} of {len(losses)} rates."


def draw(runs: dict[str, list[Run]], path: pathlib.Path) -> None:
    """Test loss over the peak rate; training losses and learning rates of the first seed over the steps."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # after the backend is chosen

    from gen_optax import plot

    figure = plt.figure(figsize=SIZE, layout="constrained")
    grid = figure.add_gridspec(2, 2)
    sweep = figure.add_subplot(grid[:, 0])
    losses = figure.add_subplot(grid[0, 1])
    rates = figure.add_subplot(grid[1, 1], sharex=losses)

    peaks = {name: float(np.median([np.max(run.learning_rates) for run in of_seed])) for name, of_seed in runs.items()}
    ends = {name: [run.test_loss for run in of_seed] for name, of_seed in runs.items()}
    names = [name for name in runs if name != _NAME]
    error = [np.std(ends[name]) for name in names]
    label = "AdamW, warm-up and cosine decay"
    x, y = [peaks[name] for name in names], [np.mean(ends[name]) for name in names]
    sweep.errorbar(x, y, error, fmt="o-", color=plot.ORANGE, label=label)
    sweep.errorbar(
        peaks[_NAME], np.mean(ends[_NAME]), np.std(ends[_NAME]), fmt="*", ms=16, color=plot.BLUE, label=_NAME
    )
    sweep.axhline(float(np.mean(ends[_NAME])), color=plot.BLUE, lw=0.8, ls=":")
    sweep.set(xscale="log", xlabel="peak learning rate", ylabel="test loss", title="Five rates tried, and none given")
    sweep.legend(frameon=False)

    for name, of_seed in runs.items():
        run, found = of_seed[0], name == _NAME
        style: dict[str, Any] = (
            {"color": plot.BLUE, "lw": 2, "zorder": 3} if found else {"color": plot.ORANGE, "lw": 0.8}
        )
        smooth = np.convolve(run.losses, np.ones(20) / 20, mode="valid")
        losses.plot(np.arange(len(smooth)) + 20, smooth, **style)
        rates.plot(np.arange(1, NUM_STEPS + 1), run.learning_rates, **style)
    losses.set(ylabel="training loss", title="Mean of 20 steps, and the learning rate as applied")
    rates.set(xlabel="step", ylabel="learning rate", yscale="log", ylim=(1e-5, None))
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


if __name__ == "__main__":
    main()
