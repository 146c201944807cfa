"""RealNVP: a density as an invertible map to a normal distribution, in affine couplings (Dinh et al., 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_LARGEST = 2.0  # of the logarithms of scales, in size


class RealNVP(nn.Module):
    """Maps ``[batch, features]`` to log-densities ``[batch]``.

    A coupling scales and shifts one half of the features by a network of the other half, then a fixed permutation
    shuffles all. At first every coupling is the identity.
    """

    num_couplings: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        log_determinant = jnp.zeros(len(x))
        for index in range(self.num_couplings):
            fixed, moved = jnp.split(x, 2, axis=-1)
            h = nn.relu(nn.Dense(self.width)(fixed))
            h = nn.relu(nn.Dense(self.width)(h))
            h = nn.Dense(2 * moved.shape[-1], kernel_init=nn.initializers.zeros)(h)
            log_scale, shift = jnp.split(h, 2, axis=-1)
            log_scale = _LARGEST * jnp.tanh(log_scale / _LARGEST)
            x = jnp.concatenate([fixed, moved * jnp.exp(log_scale) + shift], axis=-1)
            x = x[:, np.random.default_rng(index).permutation(x.shape[-1])]
            log_determinant += log_scale.astype(jnp.float32).sum(axis=-1)
        return jax.scipy.stats.norm.logpdf(x.astype(jnp.float32)).sum(axis=-1) + log_determinant
