"""GPT-2 on E2E: a sentence about a restaurant out of a list of what is to be said, fine-tuned by adapters (LoRA).

The published numbers are the paper's BLEU on the official test set. Batches of 256, sequences of 128 tokens, five
epochs, the initial rate 1e-3 and probes on the next batch at every fourth step are those of the authors' example
command. The rest is the script of Hu et al. (2022), on which the authors build: adapters of rank 4 on queries and
values, scaled by 8, with the only dropout before them; weight decay 0.01; smoothed labels; a beam search of width 10.
"""

import csv
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import path_aware_map

from benchmarks.models.gpt2 import GPT2, with_weights
from benchmarks.models.lora import Lora, is_adapter
from benchmarks.reproduce._common import (
    Files,
    Reproduction,
    methods_of,
    microbatched,
    read_weights,
    steps_of,
    tokenize,
)
from benchmarks.workload import Workload
from benchmarks.workloads._common import Arrays, batches_of, cross_entropy, flax_functions, map_over

_EPOCHS, _BATCH, _MICROBATCH = 5, 256, 32
_MAX_LENGTH = 128  # tokens
_LORA = Lora(rank=4, scale=32 / 4, dropout=0.1)
_SMOOTHING = 0.1
_WIDTH, _PENALTY, _NEW = 10, 0.8, 64  # of the beam search; at most so many tokens are written
_END = "<|endoftext|>"

_FILES = {"train": "trainset.csv", "validation": "devset.csv", "test": "testset_w_refs.csv"}
Rows = list[tuple[str, str]]
"""Meaning representations, each with one reference text."""


def reproductions() -> list[Reproduction]:
    """One setting."""
    return [
        Reproduction(
            name="gpt2_lora_e2e",
            about=f"GPT-2, lora, on E2E: {_EPOCHS} epochs, batches of {_BATCH}",
            data=Files("the E2E NLG challenge's official files of comma-separated columns", tuple(_FILES.values())),
            weights=Files("GPT-2 as Hugging Face keeps it", ("config.json", "model.safetensors", "tokenizer.json")),
            published={"GeN": 67.30, "linear decay": 66.85},
            methods=methods_of(horizon=True, batch="independent", every=4, init_learning_rate=1e-3),
            load=load,
            differs="Texts are those of the official files, where Hu et al. have the attributes renamed and the words "
            "split from punctuation; repeated 4-grams are not banned; BLEU is sacrebleu's, not the official script's.",
        )
    ]


def load(data: Path, weights: Path) -> Workload:
    """BLEU of the sentences that a beam search writes; `x` are tokens of `texts_of`, `[n, length]`."""
    module, path = gpt2_of(weights), weights / "tokenizer.json"
    end, length = end_of(path), min(_MAX_LENGTH, module.max_length - _NEW)
    rows = {split: read_e2e(data / file) for split, file in _FILES.items()}
    references = {split: grouped(rows[split]) for split in ("validation", "test")}
    splits = {split: {"x": tokenize(texts_of(of_split), path, length, end)} for split, of_split in rows.items()}
    prompts = {split: prompts_of(list(groups), path, length, end) for split, groups in references.items()}
    random_init, apply = flax_functions(module, splits["train"]["x"][:1])

    def init(key):
        params, model_state = random_init(key)
        published = {name.removeprefix("transformer."): array for name, array in read_weights(weights).items()}
        return with_weights(params, published), model_state

    def loss_fn(params, model_state, batch, key):
        logits, model_state = apply(params, model_state, batch["x"][:, :-1], key)
        losses = smoothed(logits, batch["x"][:, 1:], _SMOOTHING)
        return jnp.sum(losses * batch["weights"]) / len(losses), model_state

    def per_text(params, model_state, batch):
        logits, _ = apply(params, model_state, batch["x"][:, :-1])
        counted = of_reference(batch["x"], end)
        losses = cross_entropy(logits, batch["x"][:, 1:])
        return {"loss": jnp.sum(losses * counted, axis=1), "count": jnp.sum(counted, axis=1)}

    def per_prompt(params, model_state, batch):
        def log_probs(tokens, at):
            return nn.log_softmax(module.apply({"params": params}, tokens, train=False, at=at))

        def write(prompt, count):
            return beam_search(log_probs, prompt, count, end, width=_WIDTH, penalty=_PENALTY, steps=_NEW)

        return {"written": jax.vmap(write)(batch["x"], batch["length"])}

    over_texts = map_over(per_text, splits, chunk=_MICROBATCH)
    over_prompts = map_over(per_prompt, prompts, chunk=_MICROBATCH)

    def evaluate(params, model_state, split):
        of_texts = over_texts(params, model_state, split)
        written = decode(over_prompts(params, model_state, split)["written"], path)
        loss = np.sum(of_texts["loss"], dtype=np.float64) / np.sum(of_texts["count"])
        return {"loss": float(loss), "bleu": bleu(written, list(references[split].values()))}

    return Workload(
        name="gpt2_lora_e2e",
        base="adamw",
        weight_decay=0.01,
        num_steps=steps_of(_EPOCHS, len(rows["train"]), _BATCH),
        batch_size=_BATCH,
        metric="bleu",
        higher_is_better=True,
        init=init,
        loss_fn=microbatched(loss_fn, _MICROBATCH),
        batches=batches_of(splits["train"], lambda batch, _: weighted(batch, end)),
        evaluate=evaluate,
        trainable=lambda params: path_aware_map(lambda path, _: is_adapter(path), params),
    )


def gpt2_of(folder: Path) -> GPT2:
    """The network that `config.json` describes, with adapters."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return GPT2(
        vocabulary=config["vocab_size"],
        max_length=config["n_positions"],
        width=config["n_embd"],
        depth=config["n_layer"],
        num_heads=config["n_head"],
        epsilon=config["layer_norm_epsilon"],
        lora=_LORA,
    )


def read_e2e(path: Path) -> Rows:
    """The rows of a file, in its order.

    Raises:
      ValueError: on a file without the columns `mr` and `ref`, or a row that lacks one of them.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {"mr", "ref"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} names no columns mr, ref: is it a file of E2E with references?")
        rows = []
        for row in reader:
            if row["mr"] is None or row["ref"] is None:
                raise ValueError(f"{path}, line {reader.line_num}: no meaning representation with its reference.")
            rows.append((row["mr"], row["ref"]))
    return rows


def grouped(rows: Rows) -> dict[str, list[str]]:
    """The references of each meaning representation, wherever its rows are."""
    groups: dict[str, list[str]] = {}
    for meaning, reference in rows:
        groups.setdefault(meaning, []).append(reference)
    return groups


def texts_of(rows: Rows) -> list[str]:
    """What the network reads: `meaning<|endoftext|> reference<|endoftext|>`, with the meaning as the file has it.

    The first end of text separates and the second one ends, as in the script of Hu et al. Padding is more of them.
    """
    return [f"{meaning}{_END} {reference}{_END}" for meaning, reference in rows]


def prompts_of(meanings: list[str], path: Path, max_length: int, end: int) -> Arrays:
    """What is to be continued: tokens `x`, of which the first `length` are the meaning and the separator."""
    tokens = tokenize([f"{meaning}{_END}" for meaning in meanings], path, max_length, end)
    tokens[:, -1] = end  # where the meaning was cut, too
    return {"x": tokens, "length": np.sum(tokens != end, axis=1, dtype=np.int32) + 1}


def end_of(path: Path) -> int:
    """The token that ends a text.

    Raises:
      ValueError: where the `tokenizer.json` has no such token.
    """
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(path)).encode(_END).ids
    if len(tokens) != 1:
        raise ValueError(f"{path} has no token {_END}: is it GPT-2's?")
    return tokens[0]


def decode(written: np.ndarray, path: Path) -> list[str]:
    """The texts of tokens `[n, steps]`, without ends."""
    from tokenizers import Tokenizer

    return [text.strip() for text in Tokenizer.from_file(str(path)).decode_batch(written.tolist())]


def of_reference(tokens: Any, end: int) -> Any:
    """Whether each token but the first is the reference's, its end included: one end stands before it."""
    return (tokens[:, :-1] == end).cumsum(axis=1) == 1


def weighted(batch: Arrays, end: int) -> Arrays:
    """The batch with weights by which the mean over its examples is the mean over the tokens of its references."""
    counted = of_reference(batch["x"], end).astype(np.float32)
    return {**batch, "weights": counted * len(counted) / max(1, counted.sum())}


def smoothed(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """The cross-entropy with labels of which the share `smoothing` is spread over all tokens alike."""
    anything = -jnp.mean(nn.log_softmax(logits), axis=-1)
    return (1 - smoothing) * cross_entropy(logits, labels) + smoothing * anything


def beam_search(
    log_probs: Callable[[jax.Array, jax.Array], jax.Array],
    prompt: jax.Array,
    length: jax.Array,
    end: int,
    *,
    width: int,
    penalty: float,
    steps: int,
) -> jax.Array:
    r"""The best continuation of a prompt that was found, tokens `[steps]`; those after its end are `end`.

    Of the continuations of :math:`n` tokens with :math:`\log p`, the best has the highest :math:`\log p / n^{penalty}`.
    One that ends leaves the beam, and its place is free for another one; the `steps`-th token is always the last.

    Each step computes all tokens anew: sentences are short, and a cache of keys and values would be most of the code.

    Args:
      log_probs: `(tokens [width, n], at) -> [width, vocabulary]`, of the token that follows position `at`.
      prompt: tokens `[n]`, of which the first `length` count.
      length: how many.
      end: the token that ends a continuation.
      width: how many continuations are kept.
      penalty: the power of the number of tokens.
      steps: the highest number of tokens.
    """

    def extend(step, carry):
        tokens, scores, best, best_score = carry
        following = log_probs(tokens, length + step - 1)
        scores, chosen = jax.lax.top_k(jnp.ravel(scores[:, None] + following), width)
        parents, new = jnp.divmod(chosen, following.shape[-1])
        tokens = tokens[parents].at[:, length + step].set(new)
        ended = (new == end) | (step == steps - 1)
        final = jnp.where(ended, scores / (step + 1.0) ** penalty, -jnp.inf)
        first = jnp.argmax(final)
        better = final[first] > best_score
        best, best_score = jnp.where(better, tokens[first], best), jnp.where(better, final[first], best_score)
        return tokens, jnp.where(ended, -jnp.inf, scores), best, best_score

    tokens = jnp.tile(jnp.pad(prompt, (0, steps), constant_values=end), (width, 1))
    scores = jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf)  # all are the same: one is enough
    best = jax.lax.fori_loop(0, steps, extend, (tokens, scores, tokens[0], -jnp.inf))[2]
    return jax.lax.dynamic_slice_in_dim(best, length, steps)


def bleu(texts: list[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU in per cent, each text beside all of its references. Case does not count, as in the official script."""
    from sacrebleu.metrics import BLEU

    columns = [list(column) for column in itertools.zip_longest(*references)]
    return BLEU(lowercase=True).corpus_score(texts, columns).score
