"""The authors' PyTorch package: do both find the same learning rates, and where not, why?

`gen-optim` and gen_optax train the same small network from the same weights on the same batches, and their learning
rates are compared step by step. In the first case they should agree; each other case turns on one thing that the two do
differently, or makes ours do it their way, which should bring the traces together again. Needs PyTorch:
`pip install torch gen-optim`.
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gen_optax
from benchmarks import report as pages
from benchmarks import store
from benchmarks.questions import Study

_NOTE = "authors"
_SIZES = (8, 32, 4)
_BATCH, _RATE, _STEPS = 32, 1e-2, 240
_FAR = 1e-2  # of the logarithms of the rates


@dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes:
      explanation: why the traces agree or differ.
      momentum: of SGD, on both sides.
      next_batch: theirs probes on the next batch, as their image and text examples do.
      horizon: theirs decays, by `scale`.
      clamp: of ours.
      decay: of ours.
      ours_next_batch: ours probes on the next batch as well.
      ours_twice: our momentum, too, advances twice at a probe.
    """

    explanation: str
    momentum: float = 0.0
    next_batch: bool = False
    horizon: bool = False
    clamp: float | None = 2.0
    decay: optax.Schedule | None = None
    ours_next_batch: bool = False
    ours_twice: bool = False


CASES = {
    "plain SGD, own batch": Case("The same rule on the same numbers: rounding of the losses is all that differs."),
    "without a clamp": Case(
        "Algorithm 1 has no clamp; gen-optim keeps the target within a factor of 2 of the present rate before it is "
        "averaged, so a probe changes the rate by x0.95 to x1.1 at most.",
        clamp=None,
    ),
    "momentum": Case(
        "gen-optim steps the optimizer to read off the direction, and the training loop steps it again: at a probe the "
        "momentum takes the same gradient twice, and the step taken is not the one that was probed.",
        momentum=0.9,
    ),
    "momentum, ours advanced twice": Case(
        "With that done on our side as well the traces agree.", momentum=0.9, ours_twice=True
    ),
    "next batch": Case(
        "Its image and text examples probe on the next batch, Algorithm 1 on the gradient's own.", next_batch=True
    ),
    "next batch, ours as well": Case(
        "With `value_fn` closed over the next batch, and `value` left out, the traces agree.",
        next_batch=True,
        ours_next_batch=True,
    ),
    "horizon": Case(
        "gen-optim multiplies the target by the decay inside of the moving average: where the decay is below 1/2, the "
        "clamped and decayed target lies below the present rate whatever the fit says. Ours decays the step outside of "
        "the average; compared are the rates as applied.",
        horizon=True,
        decay=optax.linear_schedule(1.0, 0.0, _STEPS),
    ),
}


def run(study: Study) -> None:
    """Both packages on every case."""
    try:
        import GeN  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"{error}. This question needs PyTorch: pip install torch gen-optim") from error
    for name, case in list(CASES.items())[: 1 if study.tiny else None]:
        for seed in study.seeds[:1]:
            key = {"case": name, "seed": seed, "steps": 24 if study.tiny else _STEPS}
            study.measure(_NOTE, key, lambda case=case, key=key: compare(case, key["steps"], key["seed"]))


def report(results: store.Store) -> str | None:
    """How far the traces lie apart, why, and both of them drawn."""
    rows = results.note(_NOTE)
    if rows is None:
        return None
    lines = []
    for row in rows:
        apart = _apart(row)
        far = np.flatnonzero(apart > _FAR)
        lines.append(
            [
                row["key"]["case"],
                float(np.expm1(apart.max())),
                str(far[0] + 1) if len(far) else "never",
                row["theirs"][-1],
                row["ours"][-1],
                CASES[row["key"]["case"]].explanation,
            ]
        )
    header = ["case", "largest relative difference", "first above 1 %, step", "last rate, gen-optim", "last rate, ours"]
    about = f"{_BATCH} examples a batch, a probe every 4 steps, from a rate of {_RATE}."
    opening = pages.opening(f"![traces]({_draw(results, rows)})", _in_words(rows))
    return "\n\n".join([opening, about, pages.table_of(results, rows, [*header, "why"], lines)])


def _in_words(rows):
    """How far apart the rates are where the rule is the same, in how many cases they agree, and where least."""
    apart = {row["key"]["case"]: _apart(row).max() for row in rows}
    same, worst = next(iter(CASES)), max(apart, key=apart.__getitem__)
    sentences = []
    if (difference := by_the_same_rule(rows)) is not None:
        sentences.append(
            "On plain SGD, where both packages follow the same rule on the same numbers, their learning rates differ "
            f"by at most {difference} of themselves."
        )
    sentences.append(
        f"They stay within 1 % of each other in {sum(gap < _FAR for gap in apart.values())} of {len(apart)} cases."
    )
    if worst != same:
        sentences.append(f'They differ most in the case "{worst}", by a factor of {np.exp(apart[worst]):.3g}.')
    return sentences


def by_the_same_rule(rows: list[dict[str, Any]]) -> str | None:
    """The largest relative difference of the rates in the first case, to two digits; None where it was not run."""
    same = next(iter(CASES))
    return next((f"{np.expm1(_apart(row).max()):.2g}" for row in rows if row["key"]["case"] == same), None)


def _apart(row):
    """How far the logarithms of the rates lie apart, step by step."""
    return np.abs(np.log(np.array(row["ours"]) / np.array(row["theirs"])))


def compare(case: Case, steps: int, seed: int) -> dict[str, Any]:
    """Both learning rates at each step, as applied, and both losses."""
    weights, batches = _problem(seed, steps + 1)
    ours, our_losses = _ours(case, weights, batches, steps)
    theirs, their_losses = _theirs(case, weights, batches, steps)
    return {"ours": ours, "theirs": theirs, "our_losses": our_losses, "their_losses": their_losses}


def _problem(seed, count):
    """Weights of a network with one hidden layer, and batches with noisy labels."""
    rng = np.random.default_rng(seed)
    inputs, hidden, classes = _SIZES
    weights = [
        rng.normal(size=(inputs, hidden)) / inputs**0.5,
        np.zeros(hidden),
        rng.normal(size=(hidden, classes)) / hidden**0.5,
        np.zeros(classes),
    ]
    teacher = rng.normal(size=(inputs, classes))
    batches = []
    for _ in range(count):
        x = rng.normal(size=(_BATCH, inputs))
        batches.append((x.astype(np.float32), np.argmax(x @ teacher + rng.gumbel(size=(_BATCH, classes)), 1)))
    return [w.astype(np.float32) for w in weights], batches


def _ours(case, weights, batches, steps):
    base = optax.sgd(1.0, momentum=case.momentum or None)
    controller = gen_optax.algorithm_1(init_learning_rate=_RATE, clamp=case.clamp)
    scale = gen_optax.scale_by_gen(controller=controller, every=4, decay=case.decay)

    def loss_fn(params, batch):
        x, y = batch
        logits = jnp.tanh(x @ params[0] + params[1]) @ params[2] + params[3]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, base_state, scale_state, batch, probe_batch, probes):
        value, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, base_state = base.update(grads, base_state, params)
        scaled, scale_state = scale.update(
            updates,
            scale_state,
            params,
            value=None if case.ours_next_batch else value,
            value_fn=lambda p: loss_fn(p, probe_batch),
        )
        rate = scale_state.applied_learning_rate
        if case.ours_twice:
            again, again_state = base.update(grads, base_state, params)
            scaled = jax.tree.map(lambda once, twice: jnp.where(probes, rate * twice, once), scaled, again)
            base_state = jax.tree.map(lambda once, twice: jnp.where(probes, twice, once), base_state, again_state)
        return optax.apply_updates(params, scaled), base_state, scale_state, rate, value

    params = [jnp.asarray(w) for w in weights]
    base_state, scale_state = base.init(params), scale.init(params)
    rates, losses = [], []
    for index in range(steps):
        probe_batch = batches[index + 1 if case.ours_next_batch else index]
        params, base_state, scale_state, rate, loss = step(
            params, base_state, scale_state, batches[index], probe_batch, (index + 1) % 4 == 0
        )
        rates.append(float(rate))
        losses.append(float(loss))
    return rates, losses


def _theirs(case, weights, batches, steps):
    import torch
    from GeN import lr_parabola

    inputs, hidden, classes = _SIZES
    net = torch.nn.Sequential(torch.nn.Linear(inputs, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, classes))
    with torch.no_grad():
        for parameter, w in zip(net.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(w.T if w.ndim == 2 else w))
    optimizer = torch.optim.SGD(net.parameters(), lr=_RATE, momentum=case.momentum)
    criterion = torch.nn.CrossEntropyLoss()
    tensors = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in batches]
    rates, losses = [], []
    for index in range(steps):
        x, y = tensors[index]
        optimizer.zero_grad()
        loss = criterion(net(x), y)
        loss.backward()
        if (index + 1) % 4 == 0:
            with contextlib.redirect_stdout(io.StringIO()):
                lr_parabola(
                    net,
                    optimizer,
                    criterion,
                    tr_iter=iter([tensors[index + 1 if case.next_batch else index]]),
                    device="cpu",
                    task="image_cls",
                    scale=1 - index / steps if case.horizon else 1.0,
                    lr_factor=[-1, 0, 1],
                )
        optimizer.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
        losses.append(loss.item())
    return rates, losses


def _draw(results, rows):
    path = results.root / "authors.png"
    columns = min(3, len(rows))
    with pages.picture(path, columns, -(-len(rows) // columns)) as axes:
        for axis in axes.flat[len(rows) :]:
            axis.remove()
        for axis, row in zip(axes.flat, rows, strict=False):
            steps = np.arange(1, len(row["ours"]) + 1)
            axis.plot(steps, row["theirs"], lw=3, alpha=0.6, color=pages.COLOURS[1], label="gen-optim")
            axis.plot(steps, row["ours"], lw=1.2, color=pages.COLOURS[0], label="gen_optax")
            axis.set(xlabel="step", ylabel="learning rate", yscale="log", title=row["key"]["case"])
            axis.legend(frameon=False, fontsize=8)
    return path.name
