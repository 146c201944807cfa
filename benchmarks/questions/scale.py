"""Scale: what does a probe cost in memory and communication when a large transformer is sharded over many devices?

A transformer of 1e9 parameters is compiled, not run, for 8 to 64 simulated devices: parameters, gradients and
optimizer state are split over all of them (as in ZeRO and FSDP), and so is the batch. Bytes are XLA's account per
device; collectives are read off the compiled program, those inside of loops as often as the loop turns. A probe is due
at every step here, so the difference to the base step is the cost of one probe. Compiled for CPUs, gradients are summed
by all-reduce where a GPU or TPU would use reduce-scatter; that is in the base step and in the others alike.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import report as pages
from benchmarks import runner, store
from benchmarks.questions import Study

DEVICES = (8, 16, 32, 64)
PROBES = {
    "base": None,
    "retrospective": "retrospective",
    "free slope": "free_slope",
    "three points, vmap": "vmap",
    "three points, map": "map",
    "exact": "exact",
}
_NOTE = "scale"
_POINTS = (
    2  # at which a probe evaluates the loss, one after the other, where `value` is given: in a loop with an open end
)
_BASE, _DEFAULT = "base", "retrospective"
_EVERY = 16  # from one probe of the default to the next
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def run(study: Study) -> None:
    """Compiles for every number of devices and every probe, each in a process of its own."""
    cases = [(2, name) for name in list(PROBES)[:2]] if study.tiny else [(n, name) for n in DEVICES for name in PROBES]
    with runner.progress_bar() as progress:
        for devices, name in progress.track(cases, description="scale"):
            key = {"devices": devices, "probe": name, "tiny": study.tiny}
            study.measure(_NOTE, key, functools.partial(_in_subprocess, devices, name, study.tiny))


def report(results: store.Store) -> str | None:
    """Per device and step: memory and collectives, and how much of them is the probe's."""
    rows = results.note(_NOTE)
    if rows is None:
        return None
    base = {row["key"]["devices"]: row for row in rows if row["key"]["probe"] == _BASE}
    lines = []
    for row in sorted(rows, key=lambda row: (row["key"]["devices"], list(PROBES).index(row["key"]["probe"]))):
        devices, name = row["key"]["devices"], row["key"]["probe"]
        ours, theirs = sent(row), sent(base[devices])
        counts = sum(kind["count"] for kind in row["collectives"].values()) - sum(
            kind["count"] for kind in base[devices]["collectives"].values()
        )
        lines.append(
            [
                devices,
                name,
                row["arguments_bytes"] / 2**30,
                row["temporary_bytes"] / 2**30,
                "-" if name == _BASE else row["memory_bytes"] / base[devices]["memory_bytes"],
                ours / 2**30,
                "-" if name == _BASE else (ours - theirs) / 2**30,
                "-" if name == _BASE else f"{(ours - theirs) / theirs:+.1%}",
                "-" if name == _BASE else f"{counts:+d}",
                "-" if name == _BASE else f"{row['flops'] / base[devices]['flops'] - 1:+.1%}",
            ]
        )
    header = [
        "devices",
        "probe",
        "state, GiB",
        "temporaries, GiB",
        "memory / base",
        "collectives, GiB",
        "per probe, GiB",
    ]
    header += ["of base", "collectives per probe", "operations per probe, of base"]
    about = rows[0]
    text = (
        f"{about['parameters']:,} parameters, {about['tokens']:,} tokens a step, AdamW in float32; all numbers per "
        "device. Bytes of a collective are those of its result."
    )
    opening = pages.opening(f"![scale]({_draw(results, rows, base)})", _in_words(rows, base))
    return "\n\n".join([opening, text, pages.table_of(results, rows, header, lines)])


def _in_words(rows: list[dict[str, Any]], base: dict[int, dict[str, Any]]) -> list[str]:
    """What the default probe adds to memory and communication with few devices and with many."""
    ours = {row["key"]["devices"]: row for row in rows if row["key"]["probe"] == _DEFAULT}
    counts = sorted(ours.keys() & base.keys())
    if not counts:
        return []

    def more(devices: int) -> str:
        return pages.number((ours[devices]["memory_bytes"] - base[devices]["memory_bytes"]) / 2**30)

    few, many = counts[0], counts[-1]
    extra = (sent(ours[many]) - sent(base[many])) / 2**30
    return [
        f"The default probe adds {more(few)} GiB to the memory of each of {few} devices, and {more(many)} GiB to that "
        f"of each of {many}.",
        f"A probe makes each of {many} devices receive {pages.number(extra)} GiB.",
        f"With one probe in {_EVERY} steps, that is {100 * extra * 2**30 / sent(base[many]) / _EVERY:.1f} % more than "
        f"without GeN, and operations are {100 * (ours[many]['flops'] / base[many]['flops'] - 1) / _EVERY:.1f} % more.",
    ]


def sent(row: dict[str, Any]) -> int:
    """Bytes of all collectives of a step."""
    return sum(kind["bytes"] for kind in row["collectives"].values())


def compile_step(devices: int, probe: str, tiny: bool) -> dict[str, Any]:
    """Compiles one training step and reads what XLA says of it. The process must have that many devices."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import gen_optax

    width, depth, vocabulary, length = (64, 2, 256, 16) if tiny else (2048, 19, 32_768, 1024)
    batch = devices
    mesh = Mesh(np.array(jax.devices()), ("data",))  # not make_mesh, whose axes are explicit in newer versions
    whole, by_example = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    constrain = jax.lax.with_sharding_constraint
    shapes = {
        "embed": (vocabulary, width),
        "query_key_value": (depth, width, 3 * width),
        "attended": (depth, width, width),
        "up": (depth, width, 4 * width),
        "down": (depth, 4 * width, width),
    }

    def loss_fn(params, tokens):
        embed = constrain(params["embed"], whole)
        x = constrain(embed[tokens[:, :-1]], by_example)
        causal = jnp.tril(jnp.ones((length, length), bool))

        @jax.checkpoint
        def block(x, layer):
            layer = constrain(layer, whole)  # a layer's weights are gathered when their turn comes
            q, k, v = jnp.split(normalised(x) @ layer["query_key_value"], 3, axis=-1)
            q, k, v = (a.reshape(*a.shape[:2], -1, 64) for a in (q, k, v))
            scores = jnp.where(causal, jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8, -1e9)
            x = x + jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(x.shape) @ layer["attended"]
            return constrain(x + jax.nn.gelu(normalised(x) @ layer["up"]) @ layer["down"], by_example), None

        x, _ = jax.lax.scan(block, x, {name: params[name] for name in shapes if name != "embed"})
        logits = normalised(x) @ embed.T
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def normalised(x):
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)

    tx: optax.GradientTransformation = optax.adamw(1.0)
    if probe != _BASE:
        made = {
            "retrospective": gen_optax.retrospective,
            "free_slope": functools.partial(gen_optax.finite_difference, free_slope=True),
            "vmap": gen_optax.finite_difference,
            "map": functools.partial(gen_optax.finite_difference, batching="map"),
            "exact": gen_optax.exact,
        }[PROBES[probe]]()
        tx = gen_optax.gen(optax.adamw(1.0), controller=gen_optax.algorithm_1(), probe=made, every=1)

    def step(params, state, tokens):
        def value_fn(p):
            return loss_fn(p, tokens)

        value, grads = jax.value_and_grad(value_fn)(params)
        extra = {} if probe == _BASE else {"value": value, "value_fn": value_fn}
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state, value

    # The last axis of every matrix and of every state like it is split; scalars are on all devices.
    def place(x):
        split = NamedSharding(mesh, PartitionSpec(*[None] * (len(x.shape) - 1), "data"))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split if len(x.shape) > 1 else whole)

    params = {name: place(jax.ShapeDtypeStruct(shape, jnp.float32)) for name, shape in shapes.items()}
    state = jax.tree.map(place, jax.eval_shape(tx.init, params))
    tokens = jax.ShapeDtypeStruct((batch, length + 1), jnp.int32, sharding=by_example)
    out = (*jax.tree.map(lambda x: x.sharding, (params, state)), whole)
    compiled = jax.jit(step, donate_argnums=(0, 1), out_shardings=out).lower(params, state, tokens).compile()
    memory = compiled.memory_analysis()
    return {
        "parameters": sum(x.size for x in params.values()),
        "tokens": batch * length,
        "arguments_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "memory_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
        **account(compiled.as_text(), _POINTS),
    }


def account(program: str, open_turns: int = 1) -> dict[str, Any]:
    """Collectives and matrix products of a compiled program, as often as its loops turn.

    Args:
      program: the text of an HLO module.
      open_turns: how often a loop turns whose end is decided while it runs.

    Returns:
      `collectives`: `{kind: {"count": ..., "bytes": ...}}`, and `flops` of the matrix products.
    """
    computations = _computations(program)
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)
    shapes = {
        name: shape
        for _, lines in computations.values()
        for line in lines
        if (match := _INSTRUCTION.match(line))
        for name, shape in [match.group(1, 2)]
    }
    collectives = {kind: {"count": 0, "bytes": 0} for kind in _COLLECTIVES}
    flops = 0.0

    def walk(name: str, times: int) -> None:
        nonlocal flops
        for line in computations[name][1]:
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            _, shape, operation = match.groups()
            kind = operation.removesuffix("-start")
            if kind in collectives:
                collectives[kind]["count"] += times
                collectives[kind]["bytes"] += times * _bytes(shape)
            elif operation == "dot":
                flops += times * _dot_flops(line, shape, shapes)
            turns = int(found.group(1)) if (found := _TRIP_COUNT.search(line)) else open_turns
            for callee in _callees(line):
                if callee in computations:
                    walk(callee, times * (turns if operation == "while" else 1))

    walk(entry, 1)
    return {"collectives": collectives, "flops": flops}


_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_WIDTHS = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}


def _computations(program: str) -> dict[str, tuple[bool, list[str]]]:
    """`{name: (is the entry, lines)}`."""
    found: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = []
            found[header.group(2)] = (header.group(1) is not None, lines)
        else:
            lines.append(line)
    return found


def _callees(line: str) -> list[str]:
    names = re.findall(r"(?:body|calls|true_computation|false_computation)=%?([\w.\-]+)", line)
    names += re.findall(r" call\(.*to_apply=%?([\w.\-]+)", line)
    for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
        names += [name.strip().lstrip("%") for name in branches.split(",")]
    return names


def _bytes(shape: str) -> int:
    total = 0
    for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        total += _WIDTHS.get(kind, 4) * _product(sizes)
    return total


def _dot_flops(line: str, shape: str, shapes: dict[str, str]) -> float:
    operand = re.search(r" dot\((?:\S+\[[\d,]*\]\S* )?%?([\w.\-]+)", line)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)
    if operand is None or contracted is None:
        return 0.0
    sizes = re.search(r"\[([\d,]*)\]", shapes[operand.group(1)]).group(1).split(",")
    inner = 1
    for axis in contracted.group(1).split(","):
        inner *= int(sizes[int(axis)])
    return 2.0 * inner * _product(re.search(r"\[([\d,]*)\]", shape).group(1))


def _product(sizes: str) -> int:
    total = 1
    for size in filter(None, sizes.split(",")):
        total *= int(size)
    return total


def _in_subprocess(devices: int, probe: str, tiny: bool) -> dict[str, Any]:
    """The number of devices is fixed once a process has begun to use JAX."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", __name__, str(devices), probe, *(["--tiny"] if tiny else [])]
    done = subprocess.run(
        command,
        env={**os.environ, "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _draw(results, rows, base):
    path = results.root / "scale.png"
    with pages.picture(path, columns=2) as axes:
        memory, traffic = axes[0]
        for index, name in enumerate(PROBES):
            seen = sorted((row["key"]["devices"], row) for row in rows if row["key"]["probe"] == name)
            if not seen:
                continue
            devices = [count for count, _ in seen]
            style = {"marker": "o", "label": name, **pages.style(index)}
            memory.plot(devices, [row["memory_bytes"] / 2**30 for _, row in seen], **style)
            traffic.plot(devices, [sent(row) / 2**30 for _, row in seen], **style)
        memory.set(ylabel="memory per device, GiB", yscale="log")
        traffic.set(ylabel="collectives per device and step, GiB")
        for axis in axes[0]:
            axis.set_xscale("log", base=2)
            axis.set(xlabel="devices")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
        memory.legend(frameon=False, fontsize=8)  # the other axis has the same colours, and no room
    return path.name


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("devices", type=int)
    parser.add_argument("probe", choices=PROBES)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    print(json.dumps(compile_step(asked.devices, asked.probe, asked.tiny)))
