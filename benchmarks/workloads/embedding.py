"""Word embeddings: skip-grams with negative sampling (Mikolov et al., 2013) on the words of Moby Dick.

A step reaches few rows of two large tables; all others have a gradient of zero.
"""

import re
from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.data import moby_dick
from benchmarks.workload import Split, Workload
from benchmarks.workloads._common import Arrays, batches_of, mean_over

_WINDOW = 3  # words on either side
_NEGATIVES = 5  # for each pair
_EVALUATION_CHUNK = 4096


def word2vec_moby(tiny: bool = False) -> Workload:
    """Which words stand within three of each other: 5,000 words in 64 dimensions, 640 thousand parameters.

    The metric is the loss of the pairs of held-out text, each beside negatives that are always the same.
    """
    words = _synthetic_words() if tiny else re.findall(r"[a-z]+", moby_dick.load().lower())
    vocabulary, width = (30, 8) if tiny else (5000, 64)
    held_out = len(words) // 20
    texts: dict[Split, list[str]] = {
        "train": words[: -2 * held_out],
        "validation": words[-2 * held_out : -held_out],
        "test": words[-held_out:],
    }
    counts = Counter(texts["train"]).most_common(vocabulary)
    index = {word: i for i, (word, _) in enumerate(counts)}
    # A word out of the vocabulary is dropped before the windows are drawn, as in the original.
    pairs = {split: _pairs(np.array([index[w] for w in text if w in index])) for split, text in texts.items()}
    with_negatives = _negatives(np.array([count for _, count in counts]))
    splits = {split: with_negatives(arrays, np.random.default_rng(0)) for split, arrays in pairs.items()}

    def init(key):
        # As in the original: a step moves the contexts only, until they differ from zero.
        words = jax.random.uniform(key, (vocabulary, width), minval=-0.5 / width, maxval=0.5 / width)
        return {"words": words, "contexts": jnp.zeros((vocabulary, width))}, {}

    def losses(params, batch):
        contexts = jnp.concatenate([batch["context"][:, None], batch["negatives"]], axis=1)
        scores = jnp.einsum("nd,nkd->nk", params["words"][batch["word"]], params["contexts"][contexts])
        signs = jnp.array([1.0] + [-1.0] * _NEGATIVES)
        return -jax.nn.log_sigmoid(signs * scores.astype(jnp.float32)).sum(axis=1)

    def loss_fn(params, model_state, batch, key):
        return losses(params, batch).mean(), model_state

    def per_example(params, model_state, batch):
        return {"loss": losses(params, batch)}

    return Workload(
        name="word2vec_moby",
        base="adamw",
        weight_decay=0.0,
        num_steps=20 if tiny else 2000,
        batch_size=64 if tiny else 128,
        metric="loss",
        higher_is_better=False,
        init=jax.jit(init),
        loss_fn=loss_fn,
        batches=batches_of(pairs["train"], with_negatives),
        evaluate=mean_over(per_example, splits, _EVALUATION_CHUNK),
    )


def _pairs(text: np.ndarray) -> Arrays:
    """Every word with each of its neighbours."""
    word, context = [], []
    for distance in range(1, _WINDOW + 1):
        word += [text[:-distance], text[distance:]]
        context += [text[distance:], text[:-distance]]
    return {"word": np.concatenate(word).astype(np.int32), "context": np.concatenate(context).astype(np.int32)}


def _negatives(counts: np.ndarray) -> Callable[[Arrays, np.random.Generator], Arrays]:
    """`(pairs, rng) -> pairs with negatives`, which are drawn by the 3/4 power of the words' counts."""
    share = np.cumsum(counts**0.75)
    share /= share[-1]

    def with_negatives(pairs, rng):
        negatives = np.searchsorted(share, rng.random((len(pairs["word"]), _NEGATIVES)), side="right")
        return {**pairs, "negatives": negatives.astype(np.int32)}

    return with_negatives


def _synthetic_words() -> list[str]:
    """Numbers, the larger the rarer."""
    return [str(number) for number in np.random.default_rng(0).geometric(0.1, 10_000)]
