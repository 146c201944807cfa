"""BERT4Rec on MovieLens-100K: which film does this person rate next?

Of each history the last film is the test, the one before it the validation, the rest is for training. The true film is
ranked among all films that the person has not rated yet, not among a sample of them (Krichene and Rendle, 2020).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.data import ml_100k
from benchmarks.models.bert4rec import PAD, BERT4Rec
from benchmarks.workload import Workload
from benchmarks.workloads._common import Arrays, batches_of, cross_entropy, flax_functions, mean_over

_CUTOFFS = (1, 5, 10, 20)
_HIDDEN = 0.2  # share of a history that a training example asks for
_LAST_ONLY = 0.1  # share of the training examples that ask for the last item, as the evaluation does


def bert4rec_ml100k(tiny: bool = False) -> Workload:
    """Recall@K and NDCG@K at 1, 5, 10 and 20; NDCG@10 decides."""
    histories = _synthetic_histories() if tiny else ml_100k.load()
    length = 20 if tiny else 50
    module = BERT4Rec(
        num_items=max(int(history.max()) for history in histories),
        max_length=length,
        width=16 if tiny else 64,
        depth=1 if tiny else 2,
    )
    training = _windows([history[:-2] for history in histories], length)
    splits = {
        "validation": _questions([history[:-1] for history in histories], module),
        "test": _questions(histories, module),
    }
    init, apply = flax_functions(module, (training["items"][:1], np.zeros((1, 1), np.int32)))

    def per_example(params, model_state, batch):
        gap = jnp.full((len(batch["items"]), 1), length - 1)
        logits = apply(params, model_state, (batch["items"], gap))[0][:, 0].astype(jnp.float32)
        of_target = jnp.take_along_axis(logits, batch["target"][:, None], axis=1)
        # "Not below" and not "above": ties, and the NaN of a diverged network, count against it.
        rank = jnp.sum(~(logits < of_target) & ~batch["known"], axis=1) - 1
        return {"loss": cross_entropy(logits, batch["target"]), **ranked(rank)}

    return Workload(
        name="bert4rec_ml100k",
        base="adamw",
        weight_decay=0.01,
        num_steps=20 if tiny else 500,
        batch_size=16 if tiny else 64,
        metric="ndcg@10",
        higher_is_better=True,
        init=init,
        loss_fn=loss_of_gaps(apply),
        batches=batches_of(training, lambda batch, rng: _hide(batch["items"], module.mask_token, rng)),
        evaluate=mean_over(per_example, splits),
    )


def loss_of_gaps(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The mean loss of the gaps that count."""

    def loss_fn(params, model_state, batch, key):
        logits, model_state = apply(params, model_state, (batch["items"], batch["gaps"]), key)
        losses = cross_entropy(logits, batch["targets"])
        return jnp.sum(losses * batch["weights"]) / jnp.sum(batch["weights"]), model_state

    return loss_fn


def ranked(rank: jax.Array) -> dict[str, jax.Array]:
    """Recall@K and NDCG@K of a film that so many others are ranked before."""
    measures = {}
    for k in _CUTOFFS:
        measures[f"recall@{k}"] = rank < k
        measures[f"ndcg@{k}"] = jnp.where(rank < k, 1 / jnp.log2(rank + 2.0), 0)
    return measures


def _windows(histories: Sequence[np.ndarray], length: int) -> Arrays:
    """Histories in overlapping pieces that end where the history does; a short one is padded in front."""
    pieces = [
        history[max(end - length, 0) : end]
        for history in histories
        for end in range(len(history), min(length, len(history)) - 1, -length // 2)
    ]
    return {"items": np.stack([padded(piece, length) for piece in pieces])}


def _questions(histories: Sequence[np.ndarray], module: BERT4Rec) -> Arrays:
    """The last item of each history, after the ones before it; `known` are the items that cannot be the answer."""
    before = [history[:-1] for history in histories]
    known = np.zeros((len(histories), module.num_items + 1), bool)
    known[:, PAD] = True
    for row, history in zip(known, before, strict=True):
        row[history] = True
    return {
        "items": np.stack([padded(np.append(history, module.mask_token), module.max_length) for history in before]),
        "target": np.array([history[-1] for history in histories], np.int32),
        "known": known,
    }


def _hide(items: np.ndarray, mask_token: int, rng: np.random.Generator) -> Arrays:
    """Gaps at random, and in a part of the histories one at the end."""
    gaps, wanted = random_gaps(items, _HIDDEN, rng)
    last_only = rng.random(len(items)) < _LAST_ONLY
    gaps[last_only, 0] = items.shape[1] - 1
    wanted[last_only] = 1
    return with_gaps(items, gaps, wanted, mask_token)


def random_gaps(items: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions for a share of the longest history, and how many of them count in each."""
    # Random numbers sorted: a random order of the positions, those of the padding last.
    order = np.argsort(np.where(items == PAD, 2.0, rng.random(items.shape)), axis=1)
    gaps = order[:, : round(share * items.shape[1])].astype(np.int32)
    return gaps, np.maximum(1, np.round(share * np.sum(items != PAD, axis=1)))


def with_gaps(items: np.ndarray, gaps: np.ndarray, wanted: np.ndarray, mask_token: int) -> Arrays:
    """Histories with gaps, the gaps' positions and their contents; `weights` is 0 for the gaps of short histories."""
    weights = (np.arange(gaps.shape[1]) < wanted[:, None]).astype(np.float32)
    targets = np.take_along_axis(items, gaps, axis=1)
    hidden = items.copy()
    row, column = np.nonzero(weights)
    hidden[row, gaps[row, column]] = mask_token
    return {"items": hidden, "gaps": gaps, "targets": targets, "weights": weights}


def padded(history: np.ndarray, length: int) -> np.ndarray:
    """Its last items, behind as much padding as they need."""
    recent = history[-length:]
    return np.concatenate([np.full(length - len(recent), PAD), recent]).astype(np.int32)


def _synthetic_histories() -> list[np.ndarray]:
    """Everybody takes the items in turn, from an item and for a time of his own."""
    rng = np.random.default_rng(0)
    return [1 + (rng.integers(40) + np.arange(rng.integers(12, 30))) % 40 for _ in range(80)]
