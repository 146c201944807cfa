"""A gated recurrent unit over embedded tokens."""

import flax.linen as nn
import jax


class GRU(nn.Module):
    """Maps tokens `[batch, length]` to logits `[batch, length, vocabulary]`, each from the tokens up to it."""

    vocabulary: int
    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        x = nn.RNN(nn.GRUCell(self.width))(x)
        return nn.Dense(self.vocabulary)(x)
