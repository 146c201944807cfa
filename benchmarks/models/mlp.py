"""Dense layers, as many as wanted; with none hidden, logistic regression."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax


class MLP(nn.Module):
    """Maps ``[batch, ...]`` to logits ``[batch, num_classes]`` through hidden layers of these widths."""

    num_classes: int
    widths: Sequence[int] = ()
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)
