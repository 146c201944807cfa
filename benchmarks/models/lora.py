"""Adapters of low rank (Hu et al., 2022): what is trained beside a dense layer that is not."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax


class Lora(NamedTuple):
    """The adapters of a block's queries and values."""

    rank: int
    scale: float  # of what they add
    dropout: float  # of what they see


def adapter(x: jax.Array, width: int, rank: int, name: str, initial: Any = None) -> jax.Array:
    """What is added to the dense layer `name`: zero at first. `initial` is of the first kernel."""
    initial = initial or nn.initializers.lecun_normal()
    down = nn.Dense(rank, use_bias=False, kernel_init=initial, name=f"lora_{name}_down")(x)
    return nn.Dense(width, use_bias=False, kernel_init=nn.initializers.zeros, name=f"lora_{name}_up")(down)


def is_adapter(path: tuple[str, ...]) -> bool:
    """Whether the parameter at this path is an adapter's."""
    return any(part.startswith("lora_") for part in path)
