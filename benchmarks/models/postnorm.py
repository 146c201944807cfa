"""A language model of post-norm blocks, as the transformer was first published (Vaswani et al., 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.transformer import attention, embedded


class PostNormGPT(nn.Module):
    """Causal language model: tokens ``[batch, length]`` to the logits of the next ones.

    A norm stands after every addition, so each gradient passes through all norms above it; a deep one does not train
    at rates that suit pre-norm blocks (Xiong et al., 2020).
    """

    vocabulary: int
    max_length: int
    width: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        x, causal = embedded(self, tokens)
        for _ in range(self.depth):
            x = Block(self.num_heads)(x, causal)
        return nn.Dense(self.vocabulary, use_bias=False)(x)


class Block(nn.Module):
    """Attention, then a two-layer network four times as wide, each added to its input and the sum normalised."""

    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        width = x.shape[-1]
        query, key, value = jnp.split(nn.Dense(3 * width, name="query_key_value")(x), 3, axis=-1)
        attended = nn.Dense(width, name="attended")(attention(query, key, value, self.num_heads, mask))
        x = nn.LayerNorm()(x + attended)
        return nn.LayerNorm()(x + nn.Dense(width)(nn.relu(nn.Dense(4 * width)(x))))
