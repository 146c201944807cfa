"""What the settings of the paper share: description, files that may be missing, parts of a batch, tokens, weights."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks import methods
from benchmarks.workload import Workload
from benchmarks.workloads._common import Arrays, split_off

TUNED = "tuned"
"""Stands for the base optimizer with the learning rate and the schedule that tuning chose."""


@dataclass(frozen=True)
class Files:
    """What a user has to put into the folder of `--data`.

    Attributes:
      source: what it is and where it comes from, as half a sentence: "CIFAR-10, python version, unpacked".
      paths: the files that are read, relative to the folder.
    """

    source: str
    paths: tuple[str, ...]

    def check(self, folder: Path) -> None:
        """Raises FileNotFoundError, which says what to put where, unless all of them are there."""
        missing = [path for path in self.paths if not (folder / path).exists()]
        if missing:
            raise FileNotFoundError(f"No {', '.join(missing)} in {folder}. Put there: {self.source}.")

    def fingerprint(self, folder: Path) -> str:
        """A hash over the contents of the files, and of all files in those that are folders, wherever they lie."""
        digest = hashlib.sha256()
        for path in (folder / path for path in self.paths):
            for file in sorted(filter(Path.is_file, path.rglob("*"))) if path.is_dir() else [path]:
                with file.open("rb") as opened:
                    of_file = hashlib.file_digest(opened, "sha256").hexdigest()
                digest.update(f"{file.relative_to(folder).as_posix()} {of_file}\n".encode())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Reproduction:
    """One setting of the paper.

    Attributes:
      name: as typed on the command line.
      about: model, data and length, in a line.
      data: the files below the folder of `--data`.
      weights: the pretrained weights; `--weights` names their folder. None where training starts from scratch.
      published: the paper's results, by the words for the method there.
      methods: what is trained here, as `benchmarks.methods` reads it, or `TUNED`, by the words for it.
      load: `(data, weights) -> Workload`, from the two folders.
      differs: how the setting here is not the paper's, as a sentence.
    """

    name: str
    about: str
    data: Files
    weights: Files | None
    published: Mapping[str, float]
    methods: Mapping[str, str]
    load: Callable[[Path, Path | None], Workload]
    differs: str


def methods_of(*, horizon: bool, **settings: Any) -> dict[str, str]:
    """The paper's rule with these settings, the package's default, and the tuned schedule.

    The rule has the clamp of the authors' package, with which the published numbers were made; its decay stands outside
    of the smoothing. Candidates are evaluated one after the other: several copies of the parameters would be too many.
    """
    paper = methods.Spec(
        "gen_paper_horizon" if horizon else "gen_paper",
        {"probe": "finite_difference", "batching": "map", "clamp": 2.0, **settings},
    )
    return {"GeN, Algorithm 1": str(paper), "GeN, default of gen_optax": "gen_horizon", "tuned schedule": TUNED}


def microbatched(loss_fn: Callable[..., Any], size: int) -> Callable[..., Any]:
    """The loss of a batch, a mean over its examples, from parts of at most `size` examples, one after another.

    The largest parts that divide the batch evenly are taken. Only one of them is in memory at a time; the gradient
    costs a second forward pass for that. The model's state goes from part to part, and each part has its own dropout.
    """

    def of_parts(params, model_state, batch, key):
        count = len(next(iter(batch.values())))
        parts = next(parts for parts in range(-(-count // size), count + 1) if count % parts == 0)
        if parts == 1:
            return loss_fn(params, model_state, batch, key)
        stacked = jax.tree.map(lambda x: jnp.reshape(x, (parts, count // parts, *x.shape[1:])), batch)

        @jax.checkpoint
        def add(carry, part):
            total, state = carry
            loss, state = loss_fn(params, state, *part)
            return (total + loss, state), None

        start = (jnp.zeros((), jnp.float32), model_state)
        (total, model_state), _ = jax.lax.scan(add, start, (stacked, jax.random.split(key, parts)))
        return total / parts, model_state

    return of_parts


def held_out(arrays: Arrays, count: int) -> tuple[Arrays, Arrays]:
    """What remains, and `count` examples, though never more than a quarter; always the same ones."""
    return split_off(arrays, min(count, len(next(iter(arrays.values()))) // 4))


def steps_of(epochs: int, examples: int, batch_size: int) -> int:
    """How many steps the epochs are, batches not cut short."""
    return max(1, epochs * examples // batch_size)


def tokenize(texts: list[Any], path: Path, max_length: int, pad: int) -> np.ndarray:
    """Token ids int32 `[n, length]` by a `tokenizer.json`, padded to the longest, in steps of 8, or cut."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(max_length)
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    tokens = np.full((len(ids), min(max_length, -(-max(map(len, ids)) // 8) * 8)), pad, np.int32)
    for row, known in zip(tokens, ids, strict=True):
        row[: len(known)] = known
    return tokens


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of `model.safetensors` by their names there, in float32."""
    from safetensors.numpy import load_file

    return {name: array.astype(np.float32) for name, array in load_file(folder / "model.safetensors").items()}


def with_published(variables: Any, weights: Mapping[str, np.ndarray], own: str = "head") -> Any:
    """Variables whose modules are named as PyTorch's, filled with PyTorch's arrays, but for modules named `own...`.

    Raises:
      ValueError: where the weights lack an array, or have it in another shape.
    """
    flat = flatten_dict(variables)
    for path, value in flat.items():
        modules, leaf = [module for module in path[1:-1] if module not in _WRAPPERS], path[-1]
        if any(module.startswith(own) for module in modules):
            continue
        name = ".".join([*modules, _LEAVES.get(leaf, leaf)])
        if name not in weights:
            raise ValueError(f"The weights have no array {name}: they are of another kind of model.")
        array = weights[name]
        if leaf == "kernel":
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        if array.shape != value.shape:
            raise ValueError(f"The weights' {name} {weights[name].shape} does not fit {value.shape}.")
        flat[path] = jnp.asarray(array)
    return unflatten_dict(flat)


_WRAPPERS = {"network", "trunk"}  # names of ours that hold a whole network of PyTorch's
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
