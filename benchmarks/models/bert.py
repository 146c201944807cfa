"""BERT (Devlin et al., 2019) as a sentence classifier, out of published weights; with or without low-rank adapters."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.models.lora import adapter
from benchmarks.models.transformer import attention

PAD = 0


class Bert(nn.Module):
    """Maps tokens ``[batch, length]`` to logits, through the mean of the outputs over the tokens that are no padding.

    ``lora_rank`` > 0 adds adapters to queries and values (Hu et al., 2022): zero at first, scaled by 2.
    """

    num_classes: int = 2
    vocabulary: int = 30522
    max_length: int = 512
    width: int = 384
    depth: int = 6
    num_heads: int = 12
    dropout: float = 0.1
    lora_rank: int = 0

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        initial = nn.initializers.normal(0.02)
        known = tokens != PAD
        x = nn.Embed(self.vocabulary, self.width, embedding_init=initial, name="words")(tokens)
        x = x + self.param("positions", initial, (self.max_length, self.width))[: tokens.shape[1]]
        x = x + self.param("segment", initial, (self.width,))
        x = nn.LayerNorm(epsilon=1e-12, name="norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for index in range(self.depth):
            layer = Layer(self.num_heads, self.dropout, self.lora_rank, name=f"layer_{index}")
            x = layer(x, known[:, None, None, :], train)
        weights = known[..., None].astype(x.dtype)
        return nn.Dense(self.num_classes, name="head")(jnp.sum(x * weights, axis=1) / jnp.sum(weights, axis=1))


class Layer(nn.Module):
    """Attention and two dense layers, each normalised after it was added."""

    num_heads: int
    dropout: float
    lora_rank: int
    epsilon: float = 1e-12  # of the norms

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        dropout = nn.Dropout(self.dropout, deterministic=not train)

        def adapted(name):
            y = nn.Dense(width, name=name)(x)
            return y + 2 * adapter(x, width, self.lora_rank, name) if self.lora_rank else y

        y = attention(adapted("query"), nn.Dense(width, name="key")(x), adapted("value"), self.num_heads, mask)
        x = nn.LayerNorm(epsilon=self.epsilon, name="attended_norm")(x + dropout(nn.Dense(width, name="attended")(y)))
        y = nn.gelu(nn.Dense(4 * width, name="hidden")(x), approximate=False)
        return nn.LayerNorm(epsilon=self.epsilon, name="output_norm")(x + dropout(nn.Dense(width, name="output")(y)))


def with_weights(params: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """Parameters of `Bert` in which all that the published weights have is theirs: all but the head and adapters."""
    flat = flatten_dict(params, sep="/")
    depth = sum(name.endswith("intermediate.dense.bias") for name in weights)
    for ours, theirs in _NAMES.items():
        for index in range(depth if "{}" in ours else 1):
            path, array = ours.format(index), weights[theirs.format(index)]
            if path.endswith("kernel"):
                array = array.T
            elif path == "segment":
                array = array[0]  # all tokens are of the first sentence
            if path not in flat or flat[path].shape != array.shape:
                raise ValueError(f"The weights' {theirs.format(index)} {array.shape} does not fit {path}.")
            flat[path] = jnp.asarray(array)
    return unflatten_dict(flat, sep="/")


_DENSE = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "hidden": "intermediate.dense",
    "output": "output.dense",
}
_NORMS = {"attended_norm": "attention.output.LayerNorm", "output_norm": "output.LayerNorm"}
_NAMES = {
    "words/embedding": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "segment": "embeddings.token_type_embeddings.weight",
    "norm/scale": "embeddings.LayerNorm.weight",
    "norm/bias": "embeddings.LayerNorm.bias",
    **{
        f"layer_{{}}/{ours}/{mine}": f"encoder.layer.{{}}.{theirs}.{published}"
        for names, weight in ((_DENSE, "kernel"), (_NORMS, "scale"))
        for ours, theirs in names.items()
        for mine, published in ((weight, "weight"), ("bias", "bias"))
    },
}
