"""BERT4Rec (Sun et al., 2019): a bidirectional transformer that fills the gaps in a history of items."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.models.transformer import Block

PAD = 0


class BERT4Rec(nn.Module):
    """Items are 1 to ``num_items``; ``mask_token`` hides one.

    Maps items ``[batch, length]`` and positions ``[batch, gaps]`` to logits ``[batch, gaps, num_items + 1]`` of the
    items there; only those, for the output layer is the largest part of the work.
    """

    num_items: int
    max_length: int
    width: int = 64
    depth: int = 2
    num_heads: int = 2
    dropout: float = 0.1

    @property
    def mask_token(self) -> int:
        return self.num_items + 1

    @nn.compact
    def __call__(self, inputs: tuple[jax.Array, jax.Array], train: bool) -> jax.Array:
        items, gaps = inputs
        initial = nn.initializers.normal(0.02)
        embed = nn.Embed(self.num_items + 2, self.width, embedding_init=initial)
        x = embed(items) + self.param("positions", initial, (self.max_length, self.width))[: items.shape[1]]
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        known = (items != PAD)[:, None, None, :]
        for _ in range(self.depth):
            x = Block(self.num_heads, self.dropout)(x, mask=known, train=train)
        x = jnp.take_along_axis(x, gaps[:, :, None], axis=1)
        x = nn.gelu(nn.Dense(self.width)(nn.LayerNorm()(x)))
        logits = embed.attend(nn.LayerNorm()(x)) + self.param("bias", nn.initializers.zeros, (self.num_items + 2,))
        return logits[..., : self.num_items + 1]
