"""Language modelling: characters of Moby Dick, byte pairs of the State of the Union; a small GPT or a GRU, and AdamW.

The metric is the test loss itself, in nats per character or per byte-pair token.
"""

import itertools
import re
from collections.abc import Callable

import flax.linen as nn
import numpy as np

from benchmarks.data import moby_dick, sotu
from benchmarks.models.gru import GRU
from benchmarks.models.postnorm import PostNormGPT
from benchmarks.models.transformer import GPT
from benchmarks.workload import Split, Workload
from benchmarks.workloads._common import Arrays, Splits, batches_of, cross_entropy, flax_functions, mean_over

_LENGTH = 64
_VOCABULARY = 1024  # byte pairs of sotu


def gpt_moby(tiny: bool = False) -> Workload:
    """Next character, 115 thousand parameters, 32 x 64 characters a step."""
    width, depth = (16, 1) if tiny else (64, 2)
    return _moby("gpt_moby", lambda vocabulary: GPT(vocabulary, _LENGTH, width, depth, num_heads=2), tiny)


def postnorm_moby(tiny: bool = False) -> Workload:
    """Next character, four post-norm layers, 122 thousand parameters, 16 x 32 characters a step; delicate early on."""
    length, (width, depth) = 32, (16, 2) if tiny else (48, 4)
    return _moby(
        "postnorm_moby",
        lambda vocabulary: PostNormGPT(vocabulary, length, width, depth, num_heads=2),
        tiny,
        length=length,
        num_steps=800,
        batch_size=16,
    )


def gru_moby(tiny: bool = False) -> Workload:
    """Next character, recurrent, 120 thousand parameters, 32 x 64 characters a step."""
    return _moby("gru_moby", lambda vocabulary: GRU(vocabulary, width=16 if tiny else 128), tiny)


def gpt_sotu(tiny: bool = False) -> Workload:
    """Next byte pair, 865 thousand parameters, 16 x 64 tokens a step."""
    return language_model(
        name="gpt_sotu",
        weight_decay=0.01,
        num_steps=20 if tiny else 300,
        batch_size=8 if tiny else 16,
        module=GPT(
            16 if tiny else _VOCABULARY, _LENGTH, width=16 if tiny else 128, depth=1 if tiny else 3, num_heads=4
        ),
        splits=_synthetic_splits() if tiny else _sotu_splits(),
    )


def language_model(*, module: nn.Module, splits: Splits, **settings) -> Workload:
    """The workload of a network and the windows of tokens, `{split: {"tokens": [n, length + 1]}}`, that it predicts."""
    init, apply = flax_functions(module, splits["train"]["tokens"][:1, :-1])

    def token_losses(params, model_state, batch, key=None):
        logits, _ = apply(params, model_state, batch["tokens"][:, :-1], key)
        return cross_entropy(logits, batch["tokens"][:, 1:])

    def loss_fn(params, model_state, batch, key):
        return token_losses(params, model_state, batch, key).mean(), model_state

    def per_example(params, model_state, batch):
        return {"loss": token_losses(params, model_state, batch).mean(axis=1)}

    return Workload(
        base="adamw",
        metric="loss",
        higher_is_better=False,
        init=init,
        loss_fn=loss_fn,
        batches=batches_of(splits["train"]),
        evaluate=mean_over(per_example, splits, chunk=32),
        **settings,
    )


def _windows(texts: list[np.ndarray], length: int = _LENGTH) -> Arrays:
    """Texts cut into inputs of `length` tokens and the token after; a tail shorter than that is dropped."""
    cut = [np.lib.stride_tricks.sliding_window_view(text, length + 1)[::length] for text in texts]
    return {"tokens": np.concatenate(cut).astype(np.int32)}


def _moby(
    name: str,
    module_for: Callable[[int], nn.Module],
    tiny: bool,
    length: int = _LENGTH,
    num_steps: int = 600,
    batch_size: int = 32,
) -> Workload:
    """The workload of `module_for(vocabulary)`; of the text's last tenth half is for tuning and half for the test."""
    if tiny:
        splits, vocabulary = _synthetic_splits(length), 16
    else:
        characters = np.frombuffer(moby_dick.load().encode("utf-32-le"), np.uint32)
        alphabet, text = np.unique(characters, return_inverse=True)
        vocabulary, held_out = len(alphabet), len(text) // 20
        splits = {
            "train": _windows([text[: -2 * held_out]], length),
            "validation": _windows([text[-2 * held_out : -held_out]], length),
            "test": _windows([text[-held_out:]], length),
        }
    return language_model(
        name=name,
        weight_decay=0.01,
        num_steps=20 if tiny else num_steps,
        batch_size=8 if tiny else batch_size,
        module=module_for(vocabulary),
        splits=splits,
    )


def _sotu_splits() -> Splits:
    """Whole speeches: of forty in a row one is for tuning and one for the test."""
    speeches = _byte_pairs(sotu.load())
    return {
        "train": _windows([speech for i, speech in enumerate(speeches) if i % 20]),
        "validation": _windows(speeches[20::40]),
        "test": _windows(speeches[::40]),
    }


def _byte_pairs(texts: list[str]) -> list[np.ndarray]:
    """Texts as tokens of a byte-pair vocabulary, learned on a part of the training speeches."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    # A word is tokenized once, however often it occurs: ten times faster than whole speeches.
    words = [re.findall(r"\s?\w+|\W", text) for text in texts]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(itertools.chain.from_iterable(words[1::10]), trainer)
    distinct = list(dict.fromkeys(itertools.chain.from_iterable(words)))
    ids = dict(zip(distinct, (encoding.ids for encoding in tokenizer.encode_batch(distinct)), strict=True))
    return [np.array([token for word in text for token in ids[word]], np.int32) for text in words]


def _synthetic_splits(length: int = _LENGTH) -> Splits:
    """A random walk over 16 symbols in which one successor is four times as likely as all others together."""
    rng = np.random.default_rng(0)
    successor, text = rng.permutation(16), [0]
    for jump, other in zip(rng.random(20_000) < 0.2, rng.integers(0, 16, 20_000), strict=True):
        text.append(int(other) if jump else int(successor[text[-1]]))
    train, validation, test = np.split(np.array(text), [16_000, 18_000])
    texts: dict[Split, np.ndarray] = {"train": train, "validation": validation, "test": test}
    return {split: _windows([text], length) for split, text in texts.items()}
