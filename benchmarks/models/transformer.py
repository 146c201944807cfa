"""The pre-norm transformer block, and the networks made of it: a vision transformer and a language model."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.lora import Lora, adapter


class ViT(nn.Module):
    """Vision transformer: square patches, learned positions, mean over patches; logits ``[batch, num_classes]``."""

    num_classes: int
    patch: int
    width: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(self.width, (self.patch, self.patch), strides=self.patch, padding="VALID", name="patches")(x)
        x = x.reshape(len(x), -1, self.width)
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        for _ in range(self.depth):
            x = Block(self.num_heads)(x, train=train)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x).mean(axis=1))


class GPT(nn.Module):
    """Causal language model: tokens ``[batch, length]`` to the logits of the next ones."""

    vocabulary: int
    max_length: int
    width: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        x, causal = embedded(self, tokens)
        for _ in range(self.depth):
            x = Block(self.num_heads)(x, mask=causal, train=train)
        return nn.Dense(self.vocabulary, use_bias=False)(nn.LayerNorm()(x))


def embedded(model: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a language model begins with: tokens and positions, ``[batch, length, width]``, and the causal mask."""
    length = tokens.shape[1]
    # With the usual 0.02 a short run stays at the level of bigrams: attention cannot tell positions apart.
    initial = nn.initializers.normal(0.5)
    positions = model.param("positions", initial, (model.max_length, model.width))
    x = nn.Embed(model.vocabulary, model.width, embedding_init=initial)(tokens) + positions[:length]
    return x, jnp.tril(jnp.ones((length, length), bool))


class Block(nn.Module):
    """Attention, then a two-layer network four times as wide, each on the normalised input and added to it."""

    num_heads: int
    dropout: float = 0.0
    epsilon: float = 1e-6  # of the norms
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None, train: bool) -> jax.Array:
        width = x.shape[-1]
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        normed = nn.LayerNorm(epsilon=self.epsilon)(x)
        query, key, value = jnp.split(nn.Dense(3 * width, name="query_key_value")(normed), 3, axis=-1)
        if self.lora is not None:
            rank, scale, rate = self.lora
            seen = nn.Dropout(rate, deterministic=not train)(normed)
            # As Hu et al. do: uniform within one over the root of the width.
            initial = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            query = query + scale * adapter(seen, width, rank, "query", initial)
            value = value + scale * adapter(seen, width, rank, "value", initial)
        x = x + dropout(nn.Dense(width, name="attended")(attention(query, key, value, self.num_heads, mask)))
        hidden = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm(epsilon=self.epsilon)(x)))
        return x + dropout(nn.Dense(width)(hidden))


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, num_heads: int, mask: jax.Array | None = None
) -> jax.Array:
    """Softmax attention over ``[batch, length, width]``; ``mask`` is True where a query (row) may look at a key."""
    heads = [x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value)]
    scores = jnp.einsum("bqhd,bkhd->bhqk", heads[0], heads[1]) * heads[0].shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, -1e9)
    return jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), heads[2]).reshape(query.shape)
