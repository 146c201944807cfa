"""BERT4Rec on MovieLens-1M: which film does this person rate next, of that one and a hundred others?

The published numbers are those of the paper's table 7. The model and its training are the template `train_bert` of
jaywonchung/BERT4Rec-VAE-Pytorch, on which the authors build: the last 100 films, 256 wide, two blocks, 15 % of a
history hidden, 100 epochs, Adam; the authors add batches of 1,024 and, at every twelfth step, a probe of five points on
the gradient's own batch.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from benchmarks.models.bert4rec import BERT4Rec
from benchmarks.reproduce._common import Files, Reproduction, methods_of, steps_of
from benchmarks.workload import Workload
from benchmarks.workloads._common import Arrays, batches_of, cross_entropy, flax_functions, mean_over
from benchmarks.workloads.recommendation import loss_of_gaps, padded, random_gaps, ranked, with_gaps

_EPOCHS, _BATCH = 100, 1024
_LENGTH, _HIDDEN = 100, 0.15
_OTHERS = 100  # films that the true one is ranked among
_FEWEST = 5  # ratings of a person who is kept


def reproductions() -> list[Reproduction]:
    """One setting; Recall@10 decides."""
    paper = methods_of(horizon=True, batch="own", every=12, candidates=(-2, -1, 0, 1, 2), init_learning_rate=1e-3)
    return [
        Reproduction(
            name="bert4rec_ml1m",
            about=f"BERT4Rec, from scratch, on MovieLens-1M: {_EPOCHS} epochs, batches of {_BATCH}",
            data=Files("MovieLens-1M, unpacked", ("ml-1m/ratings.dat",)),
            weights=None,
            published={"GeN": 0.821, "constant": 0.796, "constant, batches of 128": 0.820},
            methods=paper,
            load=load,
            differs="All hidden films are replaced by the mask, where the template keeps or exchanges a fifth of them.",
        )
    ]


def load(data: Path, weights: None = None) -> Workload:
    """Recall@K and NDCG@K at 1, 5, 10 and 20, of the last film of each history; the one before it is to tune on."""
    histories = read_ratings(data / "ml-1m" / "ratings.dat")
    module = BERT4Rec(
        num_items=max(int(history.max()) for history in histories), max_length=_LENGTH, width=256, depth=2, num_heads=4
    )
    training = {"items": np.stack([padded(history[:-2], _LENGTH) for history in histories])}
    others = others_of(histories, module.num_items)
    splits = {
        "validation": _questions([history[:-1] for history in histories], others, module.mask_token),
        "test": _questions(histories, others, module.mask_token),
    }
    init, apply = flax_functions(module, (training["items"][:1], np.zeros((1, 1), np.int32)))

    def per_example(params, model_state, batch):
        gap = jnp.full((len(batch["items"]), 1), _LENGTH - 1)
        logits = apply(params, model_state, (batch["items"], gap))[0][:, 0].astype(jnp.float32)
        of_others = jnp.take_along_axis(logits, batch["others"], axis=1)
        of_target = jnp.take_along_axis(logits, batch["target"][:, None], axis=1)
        # "Not below": ties, and the NaN of a diverged network, count against it.
        rank = jnp.sum(~(of_others < of_target), axis=1)
        return {"loss": cross_entropy(logits, batch["target"]), **ranked(rank)}

    return Workload(
        name="bert4rec_ml1m",
        base="adamw",
        weight_decay=0.0,
        num_steps=steps_of(_EPOCHS, len(histories), _BATCH),
        batch_size=_BATCH,
        metric="recall@10",
        higher_is_better=True,
        init=init,
        loss_fn=loss_of_gaps(apply),
        batches=batches_of(training, lambda batch, rng: hide(batch["items"], module.mask_token, rng)),
        evaluate=mean_over(per_example, splits),
    )


def read_ratings(path: Path) -> list[np.ndarray]:
    """Per person, in the order of ids, the films rated, oldest first; films are numbered from 1 on.

    Reads `user::film::rating::time`. People with fewer than five ratings are left out.
    """
    lines = path.read_text(encoding="latin-1").split()
    table = np.array([line.split("::") for line in lines], np.int64)
    user, item, time = table[:, 0], np.unique(table[:, 1], return_inverse=True)[1] + 1, table[:, 3]
    # Many ratings share their second. A fixed random order settles it: from that of the ids the film could be guessed.
    tie = np.empty(len(table))
    tie[np.lexsort((item, user))] = np.random.default_rng(0).random(len(table))
    order = np.lexsort((tie, time, user))
    starts = np.flatnonzero(np.diff(user[order])) + 1
    return [history for history in np.split(item[order], starts) if len(history) >= _FEWEST]


def others_of(histories: list[np.ndarray], num_items: int) -> np.ndarray:
    """Per person, films drawn from those that the person never rated, `[n, 100]`; always the same ones."""
    rng = np.random.default_rng(0)
    everything = np.arange(1, num_items + 1)
    unrated = [np.setdiff1d(everything, history) for history in histories]
    count = min(_OTHERS, *map(len, unrated))
    return np.stack([rng.choice(films, count, replace=False) for films in unrated]).astype(np.int32)


def hide(items: np.ndarray, mask_token: int, rng: np.random.Generator) -> Arrays:
    """Histories with gaps, as `with_gaps` returns them."""
    return with_gaps(items, *random_gaps(items, _HIDDEN, rng), mask_token)


def _questions(histories: list[np.ndarray], others: np.ndarray, mask_token: int) -> Arrays:
    return {
        "items": np.stack([padded(np.append(history[:-1], mask_token), _LENGTH) for history in histories]),
        "target": np.array([history[-1] for history in histories], np.int32),
        "others": others,
    }
