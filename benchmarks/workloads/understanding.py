"""Is a snippet of a film review for or against the film? MiniLM, fine-tuned in three ways."""

from collections.abc import Callable
from typing import Any

import numpy as np
from flax.traverse_util import path_aware_map

from benchmarks.data import minilm, movie_reviews
from benchmarks.models.bert import Bert, with_weights
from benchmarks.models.lora import is_adapter
from benchmarks.workload import Workload
from benchmarks.workloads._common import Splits, classifier, flax_functions, split_off

_LENGTH = 40  # tokens; seven of eight snippets are no longer, the rest is cut off


def minilm_lora(tiny: bool = False) -> Workload:
    """Trains adapters of rank 8 and the head."""
    return _fine_tuning("minilm_lora", tiny, is_adapter, lora_rank=8)


def minilm_bitfit(tiny: bool = False) -> Workload:
    """Trains the biases and the head (Ben Zaken et al., 2022)."""
    return _fine_tuning("minilm_bitfit", tiny, lambda path: path[-1] == "bias")


def minilm_full(tiny: bool = False) -> Workload:
    """Trains everything."""
    return _fine_tuning("minilm_full", tiny)


def _fine_tuning(
    name: str, tiny: bool, chosen: Callable[[tuple[str, ...]], bool] | None = None, lora_rank: int = 0
) -> Workload:
    if tiny:
        module = Bert(vocabulary=50, max_length=_LENGTH, width=16, depth=1, num_heads=2, lora_rank=lora_rank)
        splits = _synthetic_splits()
    else:
        module = Bert(lora_rank=lora_rank)
        splits = _review_splits()
    random_init, _ = flax_functions(module, splits["train"]["x"][:1])

    def init(key):
        params, model_state = random_init(key)
        return (params if tiny else with_weights(params, minilm.load_weights())), model_state

    def trainable(params: Any) -> Any:
        return path_aware_map(lambda path, _: path[0] == "head" or chosen(path), params)

    return classifier(
        name=name,
        base="adamw",
        weight_decay=0.01,
        num_steps=20 if tiny else 120,
        batch_size=16,
        module=module,
        splits=splits,
        init=init,
        trainable=None if chosen is None else trainable,
    )


def _review_splits() -> Splits:
    texts, labels = movie_reviews.load()
    rest, test = split_off({"x": minilm.tokenize(texts, _LENGTH), "y": labels}, 1000)
    train, validation = split_off(rest, 1000)
    return {"train": train, "validation": validation, "test": test}


def _synthetic_splits() -> Splits:
    """Sentences of 5 to 40 words, of one half of the vocabulary rather than the other."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300).astype(np.int32)
    own = rng.random((300, _LENGTH)) < 0.8
    words = rng.integers(2, 26, (300, _LENGTH)) + 24 * (own == labels[:, None])
    words[np.arange(_LENGTH) >= rng.integers(5, _LENGTH + 1, 300)[:, None]] = 0
    rest, test = split_off({"x": words.astype(np.int32), "y": labels}, 50)
    train, validation = split_off(rest, 50)
    return {"train": train, "validation": validation, "test": test}
