"""Overhead: what does a step cost, in time, memory and compilation, beside the same base optimizer?

A multilayer perceptron of the wanted size, batch 64, AdamW: little work for so many parameters, hence the worst case
for everything that is done with each of them. Then three workloads of the suite as they are, a small network in flax
nnx and, where there is an accelerator, a transformer of the size of GPT-2 in bfloat16. The base optimizer and every
probe take turns in one process, a period of Phi steps each, and the ratio of their times is the median over the turns.
F (a forward pass), B (forward and backward less F) and the base step S are timed in the same turns. The paper's model
of the cost is `1 + k F / (Phi (F + B))` with k forward passes per probe; with S in place of F + B it also counts the
optimizer's own work. The retrospective probe is that of the default, which finds its rate: the program has the search
in it, and is timed past it. The other probes judge a step on its own batch, and serve Algorithm 1. Memory is XLA's own
account of the compiled step: arguments, results and temporaries, less what is shared. Compilation is from the Python
function to the program, in processor seconds, nothing being cached; there, too, all take turns.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import gen_optax
from benchmarks import methods, runner, store
from benchmarks import report as pages
from benchmarks.models.transformer import GPT
from benchmarks.questions import Study
from benchmarks.workload import Workload
from benchmarks.workloads.language import language_model
from gen_optax.plot import BLUE, GREY, ORANGE

# Probes by their methods, and the forward passes that each is said to cost.
PROBES: dict[str, tuple[str, float]] = {
    "retrospective": ("gen:probe=retrospective", 2),
    "free slope": ("gen_paper:probe=finite_difference,free_slope=true", 1),
    "three points, vmap": ("gen_paper:probe=finite_difference,batching=vmap", 2),
    "three points, map": ("gen_paper:probe=finite_difference,batching=map", 2),
    "exact": ("gen_paper:probe=exact", 3),
}
_DEFAULT = "retrospective"
WORKLOADS = ("gpt_moby", "gpt_sotu", "efficientnet_finetune")
_BATCH, _EVERY, _TURNS, _COMPILATIONS = 64, 16, 5, 3
# What a rate is found with: forward passes at rates that double, and probes beyond those of the usual rhythm.
_FIRST_RATES, _SEARCH_PROBES = gen_optax.balance().num_start_rates, gen_optax.balance().search_probes
_FIRST_PROBES = _SEARCH_PROBES * (1 - 1 / _EVERY)
_RATE, _LATER = 1e-6, 64  # of every step, and the number of calls before the first
_WARM = 32  # calls that are not timed
_NOTE = "overhead"


def run(study: Study) -> None:
    """Every Phi at a million parameters, Phi = 1 and 16 at the other sizes, and the workloads at Phi = 16."""
    if study.tiny:
        plan = [(10**4, (2,), 2)]
    else:
        plan = [
            (10**6, (1, 2, 4, 8, 16, 32), 15),
            (10**4, (1, 16), 25),
            (10**5, (1, 16), 25),
            (10**7, (1, 16), 7),
            (10**8, (1, 16), 3),
        ]
    cases = [(size, every, turns) for size, periods, turns in plan for every in periods]
    with runner.progress_bar() as progress:
        for size, every, turns in progress.track(cases, description="perceptrons"):
            key = {"parameters": size, "every": every}
            study.measure(
                _NOTE, key, lambda size=size, every=every, turns=turns: measure(perceptron(size), every, turns)
            )
        workloads = [*study.chosen(WORKLOADS[:1] if study.tiny else WORKLOADS), nnx_cnn(study.tiny)]
        if jax.default_backend() != "cpu" and not study.tiny:
            workloads.append(gpt())
        settings = (_EVERY, 1, 1) if study.tiny else (_EVERY, _TURNS, _COMPILATIONS)
        for workload in progress.track(workloads, description="workloads"):
            key = {"workload": workload.name, "every": _EVERY}
            study.measure(_NOTE, key, lambda workload=workload: measure(workload, *settings))


def report(results: store.Store) -> str | None:
    """Time by Phi and by size beside the model, and memory; then the workloads."""
    rows = results.note(_NOTE)
    if rows is None:
        return None
    perceptrons = sorted(
        (row for row in rows if "parameters" in row["key"]),
        key=lambda row: (row["key"]["parameters"], row["key"]["every"]),
    )
    workloads = [row for row in rows if "workload" in row["key"]]
    columns = ["probe", "base step, ms", "time / base", "quartiles", "1 + kF / (Φ(F + B))", "1 + kF / (Φ S)"]
    columns += ["memory / base", "copies of the parameters more"]
    parts = []
    if any(by_size(rows)):
        picture = f"![cost against size]({_draw_sizes(results, rows)})"
        parts += [pages.opening(picture, _in_words(*by_size(rows))), _SIZES]
    if perceptrons:
        lines = [
            [f"{row['key']['parameters']:.0e}", row["key"]["every"], *line]
            for row in perceptrons
            for line in _lines(row)
        ]
        parts.append(f"![overhead]({_draw(results, perceptrons)})")
        parts.append(
            "## Perceptrons, batch 64\n\n" + pages.table_of(results, perceptrons, ["parameters", "Φ", *columns], lines)
        )
    if workloads:
        lines = [
            [
                row["key"]["workload"],
                f"{row['num_parameters']:.2g}",
                *line,
                with_search(row) if line[0] == _DEFAULT else "-",
                row.get("base_compile_seconds"),
                row["probes"][line[0]].get("compile_ratio"),
            ]
            for row in workloads
            for line in _lines(row)
        ]
        about = (
            f"The column with the search adds what the search for a rate costs in a whole run: {_FIRST_RATES} forward "
            f"passes, and {_FIRST_PROBES:.0f} probes beyond the usual rhythm. It is computed from the F and S measured "
            "here and the length of the workload's run."
        )
        columns += ["time / base, with the search", "compilation of the base step, s", "compilation / base"]
        table = pages.table_of(results, workloads, ["workload", "parameters", *columns], lines)
        parts.append(f"## Workloads of the suite, Φ = {_EVERY}\n\n{about}\n\n{table}")
    return "\n\n".join(parts)


_SIZES = (
    f"The picture has time and memory of a step beside those of the base optimizer, at Φ = {_EVERY}. Perceptrons are "
    "joined by lines, and workloads of the suite stand by themselves. Bars are quartiles over the turns."
)
DRAWN = {_DEFAULT: ("default", BLUE), "three points, map": ("Algorithm 1", ORANGE)}


def by_size(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of perceptrons and of workloads at the Phi that they share, the smallest first."""
    usual = sorted((row for row in rows if row["key"]["every"] == _EVERY), key=lambda row: row["num_parameters"])
    return [row for row in usual if "parameters" in row["key"]], [row for row in usual if "workload" in row["key"]]


def _in_words(perceptrons: list[dict[str, Any]], workloads: list[dict[str, Any]]) -> list[str]:
    """What the default adds to a step: time on workloads and on perceptrons, memory on both."""

    def times(rows: list[dict[str, Any]], field: str) -> str:
        ratios = [row["probes"][_DEFAULT][field] for row in rows]
        return f"{min(ratios):.2f} to {max(ratios):.2f} times" if len(rows) > 1 else f"{ratios[0]:.2f} times"

    sentences = []
    if workloads:
        sentences.append(
            f"With one probe in {_EVERY} steps, a step of the suite's workloads takes {times(workloads, 'ratio')} as "
            "long as that of the base optimizer."
        )
    if perceptrons:
        sentences.append(
            f"On perceptrons, which do little work with each parameter, it takes {times(perceptrons, 'ratio')} as long."
        )
    sentences.append(f"A step needs {times([*perceptrons, *workloads], 'memory_ratio')} the memory.")
    return sentences


def measure(workload: Workload, every: int, turns: int, compilations: int = 1) -> dict[str, Any]:
    """One row: times, memory and compilation of all probes at a Phi."""
    # The bound keeps the parameters about where they are, so that all periods are alike.
    specs = {name: f"{method},every={every},max_learning_rate={_RATE}" for name, (method, _) in PROBES.items()}
    specs["base"] = f"baseline:learning_rate={_RATE}"
    batch = next(workload.batches(0, workload.batch_size))
    key = jax.random.key(0)
    state, _ = runner.start(workload, methods.build(methods.parse(specs["base"]), workload, 1), *workload.init(key))
    loss_of = runner.loss_of(workload)
    forward = jax.jit(lambda p: loss_of(p, state, batch, key)[0]).lower(state.params).compile()
    both = jax.jit(jax.value_and_grad(lambda p: loss_of(p, state, batch, key)[0])).lower(state.params).compile()

    compiling = _in_turns(
        {name: lambda s=spec: _compile(workload, s, batch, key) for name, spec in specs.items()}, compilations
    )
    steppers, memory = {}, {}
    for name, outcomes in compiling.items():
        state_of, compiled, _ = outcomes[-1]
        steppers[name], memory[name] = _Stepper(state_of, compiled, batch, key, every), memory_of(compiled)
    runs: dict[str, Callable[[], float]] = {**steppers}
    runs["forward"] = lambda: _timed(forward, state.params)
    runs["forward and backward"] = lambda: _timed(both, state.params)
    compile_seconds = {name: [seconds for *_, seconds in outcomes] for name, outcomes in compiling.items()}

    # The first turn allocates. A path has to begin, and the first losses along it to become known.
    for once in runs.values():
        for _ in range(-(-_WARM // every)):
            once()
    before = {name: steppers[name].num_probes() for name in PROBES}
    seconds = _in_turns(runs, turns)
    typical = {name: float(np.median(times)) for name, times in seconds.items()}
    probes = {}
    for name, (_, passes) in PROBES.items():
        ratios = np.divide(seconds[name], seconds["base"])
        extra = passes * typical["forward"] / every
        probes[name] = {
            "seconds": typical[name],
            "ratio": float(np.median(ratios)),
            "quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
            "model": 1 + extra / typical["forward and backward"],
            "model_with_optimizer": 1 + extra / typical["base"],
            "memory_ratio": memory[name] / memory["base"],
            "compile_ratio": float(np.median(np.divide(compile_seconds[name], compile_seconds["base"]))),
            "probes_per_turn": (steppers[name].num_probes() - before[name]) / turns,
        }
    return {
        "num_parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "num_steps": workload.num_steps,
        "base_seconds": typical["base"],
        "forward_seconds": typical["forward"],
        "forward_and_backward_seconds": typical["forward and backward"],
        "base_bytes": memory["base"],
        "base_compile_seconds": float(np.median(compile_seconds["base"])),
        "turns": turns,
        "probes": probes,
    }


def perceptron(size: int) -> Workload:
    """A regression on noise with three square layers that hold about `size` parameters."""
    width = max(8, round((size / 3) ** 0.5))

    def init(key):
        keys = jax.random.split(key, 3)
        return [jax.random.normal(k, (width, width)) / width**0.5 for k in keys], {}

    def loss_fn(params, model_state, batch, key):
        x = batch["x"]
        for weights in params[:-1]:
            x = jax.nn.gelu(x @ weights)
        return jnp.mean((x @ params[-1] - batch["y"]) ** 2), model_state

    def batches(seed, batch_size):
        rng = np.random.default_rng(seed)
        while True:
            yield {name: rng.normal(size=(batch_size, width)).astype(np.float32) for name in ("x", "y")}

    return _on_noise(f"perceptron_{size}", init, loss_fn, batches)


def _on_noise(name, init, loss_fn, batches):
    """A workload that nobody evaluates."""
    return Workload(
        name=name,
        base="adamw",
        weight_decay=0.0,
        num_steps=100,
        batch_size=_BATCH,
        metric="loss",
        higher_is_better=False,
        init=init,
        loss_fn=loss_fn,
        batches=batches,
        evaluate=lambda params, model_state, split: {"loss": 0.0},
    )


def nnx_cnn(tiny: bool = False) -> Workload:
    """A classifier in flax nnx, three convolutions with batch statistics and dropout before the output, on noise."""
    side, widths, classes = (8, (4,), 10) if tiny else (28, (16, 32, 64), 10)

    class CNN(nnx.Module):
        def __init__(self, rngs):
            sizes = zip((1, *widths[:-1]), widths, strict=True)
            self.convolutions = nnx.List([nnx.Conv(m, n, (3, 3), strides=2, rngs=rngs) for m, n in sizes])
            self.norms = nnx.List([nnx.BatchNorm(n, rngs=rngs) for n in widths])
            self.dropout = nnx.Dropout(0.1)
            self.head = nnx.Linear(widths[-1], classes, rngs=rngs)

        def __call__(self, x, key):
            for convolution, norm in zip(self.convolutions, self.norms, strict=True):
                x = jax.nn.relu(norm(convolution(x)))
            return self.head(self.dropout(x.mean((1, 2)), rngs=nnx.Rngs(key)))

    graph = nnx.graphdef(CNN(nnx.Rngs(0)))

    def init(key):
        _, params, model_state = nnx.split(CNN(nnx.Rngs(key)), nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)

    def loss_fn(params, model_state, batch, key):
        model = nnx.merge(graph, nnx.State(params), nnx.State(model_state))
        losses = optax.softmax_cross_entropy_with_integer_labels(model(batch["image"], key), batch["label"])
        return losses.mean(), nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[2])

    def batches(seed, batch_size):
        rng = np.random.default_rng(seed)
        while True:
            image = rng.normal(size=(batch_size, side, side, 1)).astype(np.float32)
            yield {"image": image, "label": rng.integers(0, classes, batch_size)}

    return _on_noise("nnx_cnn", init, loss_fn, batches)


def gpt() -> Workload:
    """A language model of the smallest GPT-2's sizes, 163 million parameters as the output has its own, on noise."""
    vocabulary, length = 50_257, 1024
    noise = np.random.default_rng(0).integers(0, vocabulary, (64, length + 1), dtype=np.int32)
    workload = language_model(
        name="gpt2_sized",
        weight_decay=0.01,
        num_steps=10_000,
        batch_size=8,
        module=GPT(vocabulary, length, width=768, depth=12, num_heads=12),
        splits={split: {"tokens": noise} for split in ("train", "validation", "test")},
    )
    return runner.in_precision(workload, "mixed")


def memory_of(compiled: Any) -> int:
    """Bytes that a compiled function needs at once, after XLA's own account."""
    seen = compiled.memory_analysis()
    return seen.argument_size_in_bytes + seen.output_size_in_bytes + seen.temp_size_in_bytes - seen.alias_size_in_bytes


def _compile(workload, spec, batch, key):
    """The first state, the compiled step, and the processor seconds that its compilation took."""
    method = methods.build(methods.parse(spec), workload, 10**9)
    state, step = runner.start(workload, method, *workload.init(key))
    state = state._replace(optimizer=_past_the_search(state.optimizer))
    jax.clear_caches()  # what another step has traced before would be free
    began = time.process_time()
    compiled = step.lower(state, batch, {}, key).compile()
    return state, compiled, time.process_time() - began


class _Stepper:
    """Takes Phi steps at a call, and says how long one took."""

    def __init__(self, state, compiled, batch, key, every):
        self.state, self.step = state, lambda state: compiled(state, batch, {}, key)[0]
        self.every = every

    def __call__(self):
        jax.block_until_ready(self.state)
        began = time.perf_counter()
        for _ in range(self.every):
            self.state = self.step(self.state)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - began) / self.every

    def num_probes(self):
        """Those of GeN so far."""
        return int(gen_optax.metrics(self.state.optimizer)["num_probes"])


def _in_turns(functions, turns):
    """What each returns at each turn, every second turn the other way round."""
    returned = {name: [] for name in functions}
    for turn in range(turns):
        for name in functions if turn % 2 == 0 else reversed(functions):
            returned[name].append(functions[name]())
    return returned


def _past_the_search(optimizer_state):
    """The state of GeN as if a rate had been searched for, so that only every Phi-th step probes; another as it is."""

    def past(x):
        if not runner.is_gen(x):
            return x
        controller = x.controller
        if controller:  # that of Algorithm 1 remembers nothing
            controller = controller._replace(age=jnp.full_like(controller.age, _SEARCH_PROBES))
        rate, count = jnp.full_like(x.learning_rate, _RATE), jnp.full_like(x.count, _LATER)
        return x._replace(count=count, learning_rate=rate, controller=controller)

    return jax.tree.map(past, optimizer_state, is_leaf=runner.is_gen)


def _lines(row):
    """A line per probe."""
    copies = row["base_bytes"] / (4 * row["num_parameters"])  # all of them are float32
    return [
        [
            probe,
            1e3 * row["base_seconds"],
            seen["ratio"],
            f"{seen['quartiles'][0]:.3g} to {seen['quartiles'][1]:.3g}",
            seen["model"],
            seen["model_with_optimizer"],
            seen["memory_ratio"],
            (seen["memory_ratio"] - 1) * copies,
        ]
        for probe, seen in row["probes"].items()
    ]


def with_search(row):
    passes = _FIRST_RATES + PROBES[_DEFAULT][1] * _FIRST_PROBES
    return row["probes"][_DEFAULT]["ratio"] + passes * row["forward_seconds"] / row["base_seconds"] / row["num_steps"]


def _timed(function, *args):
    began = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - began


def _draw_sizes(results, rows):
    path = results.root / "overhead_size.png"
    perceptrons, workloads = by_size(rows)
    with pages.picture(path, rows=2, size=(5.2, 6.4), sharex=True) as axes:
        for axis, field in zip(axes.flat, ("ratio", "memory_ratio"), strict=True):
            for probe, (label, colour) in DRAWN.items():
                for group, style in (
                    (perceptrons, {"marker": "o", "label": label}),
                    (workloads, {"marker": "D", "ls": ""}),
                ):
                    sizes = [row["num_parameters"] for row in group]
                    values = np.array([row["probes"][probe][field] for row in group])
                    quartiles = np.array([row["probes"][probe]["quartiles"] for row in group]).reshape(-1, 2)
                    bars = np.abs(quartiles.T - values) if field == "ratio" else None
                    axis.errorbar(sizes, values, yerr=bars, color=colour, ms=5, lw=1.5, elinewidth=1.2, **style)
            for row in workloads:
                at = row["num_parameters"], min(row["probes"][probe][field] for probe in DRAWN)
                below = {"xytext": (0, -8), "textcoords": "offset points", "va": "top"}
                axis.annotate(row["key"]["workload"], at, rotation=-20, fontsize=8, **below)
            axis.axhline(1.0, color=GREY, lw=0.8)
            axis.set_xscale("log")
            axis.margins(x=0.2, y=0.5)  # room for the names
        axes[0, 0].set(ylabel="time of a step / of the base step")
        axes[1, 0].set(ylabel="memory of a step / of the base step", xlabel="parameters")
        axes[0, 0].legend(frameon=False)
    return path.name


def _draw(results, rows):
    path = results.root / "overhead.png"
    sizes = sorted({row["key"]["parameters"] for row in rows})
    periods = pages.grouped(rows, lambda row: row["key"]["parameters"])
    detailed = max(sizes, key=lambda size: len(periods[size]))
    with pages.picture(path, columns=2) as axes:
        by_period, by_size = axes[0]
        for index, probe in enumerate(PROBES):
            seen = [(row["key"]["every"], row["probes"][probe]) for row in periods[detailed]]
            by_period.plot(
                [every for every, _ in seen],
                [entry["ratio"] for _, entry in seen],
                marker="o",
                label=probe,
                **pages.style(index),
            )
            by_period.plot(
                [every for every, _ in seen],
                [entry["model_with_optimizer"] for _, entry in seen],
                color=pages.style(index)["color"],
                lw=0.8,
                ls=":",
            )
            seen = [(row["key"]["parameters"], row["probes"][probe]) for row in rows if row["key"]["every"] == 1]
            by_size.plot(
                [size for size, _ in seen], [entry["ratio"] for _, entry in seen], marker="o", **pages.style(index)
            )
        by_period.set_xscale("log", base=2)
        by_period.set(
            xlabel="Φ, steps per probe",
            ylabel="time of a step / time of the base step",
            title=f"{detailed:,} parameters; dotted: 1 + kF / (Φ S)",
        )
        by_period.legend(frameon=False, fontsize=8)
        by_size.set_xscale("log")
        by_size.set(xlabel="parameters", ylabel="time of a step / time of the base step", title="Φ = 1")
    return path.name
