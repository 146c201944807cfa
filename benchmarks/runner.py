"""Trains one workload with one method: one jitted step with everything in it, and a cell of numbers at the end.

    cell = run(key, workload, store)      # finds the cell, or trains and stores it

Losses and learning rates stay on the device until a chunk of steps is done; the time of a chunk is taken without the
making of its batches and without compilation.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import gen_optax
from benchmarks import methods, rule, store
from benchmarks.workload import Workload

TUNING_SEEDS = (0, 201, 202)
"""The baseline is tuned on these seeds, on the validation split; the test split is never read with them."""
DEFAULTS_SEEDS = (101, 102, 103)
"""Nor with these and those above, on which the defaults of GeN are chosen."""
SEEDS = (1, 2, 3)


def is_reported(seed: int) -> bool:
    """Whether a run of this seed may see the test split; no setting is ever chosen by it."""
    return TUNING_SEEDS[0] < seed < DEFAULTS_SEEDS[0]


_CHUNKS, _MAX_CHUNK = 20, 50  # of steps between two looks of the host; at most so many batches are held in memory
_FIRST = 100  # the first loss is the mean over this part of a run
_ABOUT = ("base", "weight_decay", "num_steps", "batch_size", "metric", "higher_is_better")  # for the reports
_DIVERGED_FACTOR = 2.0  # a training loss that ends above this many times its start has not trained


def cell_key(
    workload: Workload,
    spec: methods.Spec | str,
    seed: int,
    batch_size: int | None = None,
    num_steps: int | None = None,
    precision: str = "float32",
) -> dict[str, Any]:
    """What a cell is known by. Batch size and steps default to the workload's own."""
    spec = methods.parse(spec) if isinstance(spec, str) else spec
    return {
        "workload": workload.name,
        "method": str(spec),
        "seed": seed,
        "batch_size": batch_size or workload.batch_size,
        "num_steps": num_steps or workload.num_steps,
        "precision": precision,
    }


def run(key: dict[str, Any], workload: Workload, results: store.Store, progress: Progress | None = None):
    """The cell of this key: found, or trained now and stored. An exception becomes a cell with an `error`.

    A cell of another rule than today's does not count as found: it is trained again, and replaced.
    """
    cell = results.find(key)
    if cell is None or not rule.is_today(results, cell):
        try:
            cell = train(key, workload, progress)
        except Exception as error:
            cell = {"key": key, "error": f"{type(error).__name__}: {error}".split("\n")[0][:300], "diverged": True}
        about = {name: getattr(workload, name) for name in _ABOUT}
        of = {"rule": rule.fingerprint()} if rule.depends(cell) else {}
        cell = store.finite({**cell, "workload": about, **store.circumstances(), **of})
        results.put(cell)
    return cell


def run_all(keys: Iterable[dict[str, Any]], workload: Workload, results: store.Store) -> list[dict[str, Any]]:
    """The cells of these keys, with a progress bar over them and one over the steps of the present one."""
    keys = list(keys)
    cells = []
    with progress_bar() as progress:
        bar = progress.add_task(workload.name, total=len(keys))
        for key in keys:
            cells.append(run(key, workload, results, progress))
            progress.advance(bar)
    return cells


def progress_bar() -> Progress:
    """A bar that says what is done and how long the rest takes."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def train(key: dict[str, Any], workload: Workload, progress: Progress | None = None) -> dict[str, Any]:
    """One training run, as a cell."""
    workload = in_precision(workload, key["precision"])
    num_steps, seed = key["num_steps"], key["seed"]
    method = methods.build(methods.parse(key["method"]), workload, num_steps)
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params, model_state = workload.init(init_key)
    state, step = start(workload, method, params, model_state)
    batches = batches_for(workload, method, seed, key["batch_size"])

    chunk = max(1, min(_MAX_CHUNK, num_steps // _CHUNKS))
    records: list[dict[str, np.ndarray]] = []
    seconds, compile_seconds = [], None
    task = None if progress is None else progress.add_task(f"  {key['method']} seed {seed}", total=num_steps)
    while len(records) < num_steps:
        chunk_batches = [next(batches) for _ in range(min(chunk, num_steps - len(records)))]
        if compile_seconds is None:
            began = time.perf_counter()
            step = step.lower(state, *chunk_batches[0], step_key).compile()
            compile_seconds = time.perf_counter() - began
        began = time.perf_counter()
        scalars = []
        for batch in chunk_batches:
            state, observed = step(state, *batch, step_key)
            scalars.append(observed)
        jax.block_until_ready(state)
        seconds.append((time.perf_counter() - began) / len(chunk_batches))
        records += jax.device_get(scalars)
        if progress is not None:
            progress.update(task, completed=len(records))
        if not _all_finite(state.params):
            break
    if progress is not None:
        progress.remove_task(task)

    curves = {name: np.array([float(record[name]) for record in records]) for name in records[0]}
    evaluated = merge(method.eval_params(state.optimizer, state.params), state.frozen)
    splits = ["validation", "test"] if is_reported(seed) else ["validation"]
    final = {split: workload.evaluate(evaluated, state.model, split) for split in splits}
    final["train_loss"] = float(np.mean(curves["loss"][-max(1, num_steps // 20) :]))
    return {
        "key": key,
        "final": final,
        "diverged": _diverged(curves["loss"], final, len(records) < num_steps),
        "steps": len(records),
        "seconds_per_step": float(np.median(seconds)),
        "compile_seconds": compile_seconds,
        "probes": _probe_summary(curves),
        **_light(curves),
    }


class TrainState(NamedTuple):
    """What a step changes; its buffers are donated."""

    params: Any  # the trained part, None where a leaf is frozen
    frozen: Any  # the other part; an argument of the step, since XLA would fold it into the program otherwise
    model: Any
    optimizer: Any
    step: jax.Array


def start(
    workload: Workload, method: methods.Method, params: Any, model_state: Any
) -> tuple[TrainState, Callable[..., Any]]:
    """The state before the first step, and the jitted step.

    The step is `(state, batch, probe_batches, key) -> (state, scalars)`; it donates the buffers of the state.
    """
    loss_fn = loss_of(workload)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch, probe_batches, key):
        key = jax.random.fold_in(key, state.step)

        def own_batch(p):
            return loss_fn(p, state, batch, key)

        def other_batches(p):
            return jnp.mean(jax.lax.map(lambda other: loss_fn(p, state, other, key)[0], probe_batches))

        (loss, model), grads = jax.value_and_grad(own_batch, has_aux=True)(state.params)
        if method.probe_batches:
            extra: dict[str, Any] = {"value_fn": other_batches}
        else:
            extra = {"value_fn": lambda p: own_batch(p)[0], "value": loss, "grad": grads}
        updates, optimizer = method.transformation.update(grads, state.optimizer, state.params, **extra)
        scalars = {"loss": loss, "learning_rate": method.learning_rate(optimizer, state.step), **_probe(optimizer)}
        new = TrainState(optax.apply_updates(state.params, updates), state.frozen, model, optimizer, state.step + 1)
        return new, scalars

    # Donated buffers must be the state's own, and an optimizer may keep the first parameters. A weak type would turn
    # into a strong one at the first step, and the second would be compiled anew.
    trained, frozen = _partition(params, workload.trainable)
    state = TrainState(trained, frozen, model_state, method.transformation.init(trained), jnp.zeros((), jnp.int32))
    return jax.tree.map(lambda x: jnp.array(x, x.dtype), state), step


def loss_of(workload: Workload) -> Callable[..., Any]:
    """`(trained, state, batch, key) -> (loss, new model state)`: the workload's loss at other trained parameters."""

    def loss_fn(trained, state: TrainState, batch, key):
        return workload.loss_fn(merge(trained, state.frozen), state.model, batch, key)

    return loss_fn


def merge(trained: Any, frozen: Any) -> Any:
    """All parameters."""
    return jax.tree.map(lambda t, f: f if t is None else t, trained, frozen, is_leaf=lambda x: x is None)


def batches_for(workload: Workload, method: methods.Method, seed: int, batch_size: int) -> Iterator[tuple[Any, Any]]:
    """Pairs of a training batch and a stack of batches for the probe, empty where it uses the same batch."""
    own = workload.batches(seed, batch_size)
    if not method.probe_batches:
        return ((batch, {}) for batch in own)
    others = workload.batches(seed + 1_000_003, batch_size)
    return ((batch, _stack([next(others) for _ in range(method.probe_batches)])) for batch in own)


def in_precision(workload: Workload, precision: str) -> Workload:
    """The workload computed otherwise.

    `float32`: as it is. `mixed`: parameters in float32, cast to bfloat16 with the batch for the forward pass.
    `bfloat16`: parameters, optimizer state and batch in bfloat16 throughout.
    """
    if precision == "float32":
        return workload
    if precision not in ("mixed", "bfloat16"):
        raise ValueError(f"Unknown precision {precision!r}: float32, mixed or bfloat16.")

    def low(tree):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    def init(key):
        params, model_state = workload.init(key)
        return (low(params) if precision == "bfloat16" else params), model_state

    def loss_fn(params, model_state, batch, key):
        loss, new_state = workload.loss_fn(low(params), model_state, low(batch), key)
        new_state = jax.tree.map(lambda new, old: new.astype(old.dtype), new_state, model_state)
        return loss.astype(jnp.float32), new_state

    return dataclasses.replace(workload, init=init, loss_fn=loss_fn)


def _probe(optimizer_state: Any) -> dict[str, jax.Array]:
    """What GeN says of its last probe, to be gathered at each step; nothing for other methods."""
    if not any(map(is_gen, jax.tree.leaves(optimizer_state, is_leaf=is_gen))):
        return {}
    known = gen_optax.metrics(optimizer_state)
    return {"eta": known["learning_rate"], "status": known["status"], "num_probes": known["num_probes"]}


def is_gen(x: Any) -> bool:
    """Whether this is the state of GeN within an optimizer's."""
    return isinstance(x, gen_optax.GenState)


def _probe_summary(curves: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """How many probes, what became of them, and the mean of abs(log eta ratio) from probe to probe."""
    if "status" not in curves:
        return None
    at_probe = np.diff(curves["num_probes"], prepend=0) > 0
    statuses = collections.Counter(gen_optax.ProbeStatus(int(s)).name.lower() for s in curves["status"][at_probe])
    eta = curves["eta"][at_probe]
    eta = eta[eta > 0]
    return {
        "probes": int(at_probe.sum()),
        "accepted": statuses.get("accepted", 0),
        "statuses": dict(statuses),
        "mean_log_change": float(np.mean(np.abs(np.diff(np.log(eta))))) if len(eta) > 1 else None,
    }


def _diverged(losses: np.ndarray, final: dict[str, Any], stopped: bool) -> bool:
    numbers = [final["train_loss"], *final["validation"].values()]
    return bool(stopped or not np.all(np.isfinite(numbers)) or final["train_loss"] > _DIVERGED_FACTOR * abs(losses[0]))


def _light(curves: dict[str, np.ndarray]) -> dict[str, Any]:
    """What is kept of the loss and the learning rate at every step."""
    losses, rates = curves["loss"], curves["learning_rate"]
    known = {"step": list(range(1, len(losses) + 1)), "loss": losses.tolist(), "learning_rate": rates.tolist()}
    return {
        "first_loss": float(np.mean(losses[: max(1, len(losses) // _FIRST)])),
        "highest_learning_rate": float(np.max(rates[np.isfinite(rates)])) if np.isfinite(rates).any() else None,
        "curves": store.thinned(known),
    }


def _partition(params: Any, trainable: Callable[[Any], Any] | None) -> tuple[Any, Any]:
    """The trained and the frozen parameters: two trees of the structure of `params` with None for the other part."""
    if trainable is None:
        return params, jax.tree.map(lambda _: None, params)
    mask = trainable(params)
    trained = jax.tree.map(lambda m, p: p if m else None, mask, params)
    return trained, jax.tree.map(lambda m, p: None if m else p, mask, params)


def _stack(batches: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
