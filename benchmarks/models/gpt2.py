"""GPT-2 (Radford et al., 2019), out of published weights; with or without low-rank adapters."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.models.lora import Lora, is_adapter
from benchmarks.models.transformer import Block


class GPT2(nn.Module):
    """Maps tokens ``[batch, length]`` to the logits of the next ones, through the words' own embedding."""

    vocabulary: int = 50257
    max_length: int = 1024
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    epsilon: float = 1e-5  # of the norms
    lora: Lora | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool, at: jax.Array | None = None) -> jax.Array:
        """Logits ``[batch, length, vocabulary]``, or ``[batch, vocabulary]`` of what follows position ``at``."""
        length = tokens.shape[1]
        initial = nn.initializers.normal(0.02)
        words = nn.Embed(self.vocabulary, self.width, embedding_init=initial, name="words")
        x = words(tokens) + self.param("positions", initial, (self.max_length, self.width))[:length]
        causal = jnp.tril(jnp.ones((length, length), bool))
        for index in range(self.depth):
            block = Block(self.num_heads, epsilon=self.epsilon, lora=self.lora, name=f"h.{index}")
            x = block(x, mask=causal, train=train)
        if at is not None:
            x = x[:, at]
        return words.attend(nn.LayerNorm(epsilon=self.epsilon, name="norm")(x))


def with_weights(params: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """Parameters of `GPT2` that are the published ones, but for the adapters.

    Raises:
      ValueError: where the weights lack an array, or have it in another shape.
    """
    flat = flatten_dict(params)
    for path, value in flat.items():
        if is_adapter(path):
            continue
        *modules, leaf = path
        name = ".".join([*(_MODULES.get(module, module) for module in modules), _LEAVES.get(leaf, leaf)])
        if name not in weights:
            raise ValueError(f"The weights have no array {name}, which config.json implies: they are of another model.")
        if weights[name].shape != value.shape:
            raise ValueError(f"The weights' {name} {weights[name].shape} does not fit {value.shape}.")
        flat[path] = jnp.asarray(weights[name])
    return unflatten_dict(flat)


_MODULES = {
    "words": "wte",
    "LayerNorm_0": "ln_1",
    "query_key_value": "attn.c_attn",
    "attended": "attn.c_proj",
    "LayerNorm_1": "ln_2",
    "Dense_0": "mlp.c_fc",
    "Dense_1": "mlp.c_proj",
    "norm": "ln_f",
}
_LEAVES = {"positions": "wpe.weight", "embedding": "weight", "kernel": "weight", "scale": "weight"}
