"""RoBERTa-base on seven tasks of GLUE, fine-tuned by adapters (LoRA), by its biases (BitFit) and in full.

The published numbers are those of the paper's table 4, on the official development sets. Batches of 128, ten epochs,
the initial rate 2e-5 and probes on the next batch at every eighth step are those of the authors' example command.
Adapters of rank 8 on queries and values are the paper's 0.3 million parameters; they are scaled by 2.
"""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import path_aware_map

from benchmarks.models.bert import Layer, with_weights
from benchmarks.models.lora import is_adapter
from benchmarks.reproduce._common import (
    Files,
    Reproduction,
    held_out,
    methods_of,
    microbatched,
    read_weights,
    steps_of,
    tokenize,
)
from benchmarks.workload import Workload
from benchmarks.workloads._common import Arrays, batches_of, cross_entropy, flax_functions, map_over

_EPOCHS, _BATCH, _MICROBATCH = 10, 128, 32
_MAX_LENGTH = 512  # tokens
_VALIDATION = 1000
_LORA_RANK = 8

_METHODS = methods_of(horizon=True, batch="independent", every=8, init_learning_rate=2e-5)
_WAYS = ("lora", "bitfit", "full")


@dataclass(frozen=True)
class Task:
    """One task of GLUE, in its official files of tab-separated columns.

    Attributes:
      folder: as the official archive names it.
      texts: the columns of the sentence, or of the two, by their names or, without a header, by their numbers.
      label: the column of the label.
      labels: its values, in the order of classes.
      metric: a key of `_METRICS`.
      published: of the schedule and of GeN, for each of `_WAYS`.
      dev: the files of the development set.
      header: whether the first line names the columns.
      skips_short_rows: whether rows that lack columns are left out; a few of QQP's do.
    """

    folder: str
    texts: tuple[Any, ...]
    label: Any
    labels: tuple[str, ...]
    metric: str
    published: tuple[tuple[float, float], ...]
    dev: tuple[str, ...] = ("dev.tsv",)
    header: bool = True
    skips_short_rows: bool = False


_ENTAILED = ("entailment", "not_entailment")
TASKS = {
    "mnli": Task(
        "MNLI",
        ("sentence1", "sentence2"),
        "gold_label",
        ("contradiction", "entailment", "neutral"),
        "accuracy",
        ((0.875, 0.867), (0.850, 0.851), (0.867, 0.868)),
        dev=("dev_matched.tsv", "dev_mismatched.tsv"),
    ),
    "sst2": Task(
        "SST-2", ("sentence",), "label", ("0", "1"), "accuracy", ((0.951, 0.943), (0.937, 0.943), (0.942, 0.947))
    ),
    "mrpc": Task(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        ("0", "1"),
        "f1",
        ((0.908, 0.921), (0.920, 0.923), (0.925, 0.923)),
    ),
    "cola": Task(
        "CoLA",
        (3,),
        1,
        ("0", "1"),
        "matthews",
        ((0.634, 0.637), (0.618, 0.625), (0.611, 0.648)),
        header=False,
    ),
    "qnli": Task(
        "QNLI",
        ("question", "sentence"),
        "label",
        _ENTAILED,
        "accuracy",
        ((0.933, 0.923), (0.913, 0.915), (0.923, 0.919)),
    ),
    "qqp": Task(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        ("0", "1"),
        "f1",
        ((0.853, 0.869), (0.842, 0.843), (0.880, 0.884)),
        skips_short_rows=True,
    ),
    "rte": Task(
        "RTE",
        ("sentence1", "sentence2"),
        "label",
        _ENTAILED,
        "accuracy",
        ((0.866, 0.791), (0.778, 0.780), (0.774, 0.805)),
    ),
}


def reproductions() -> list[Reproduction]:
    """Seven tasks, each in three ways."""
    return [_reproduction(name, way) for name in TASKS for way in _WAYS]


def _reproduction(name: str, way: str) -> Reproduction:
    task = TASKS[name]
    schedule, gen = task.published[_WAYS.index(way)]
    return Reproduction(
        name=f"roberta_{way}_{name}",
        about=f"RoBERTa-base, {way}, on {task.folder}: {_EPOCHS} epochs, batches of {_BATCH}",
        data=Files(
            f"{task.folder} of GLUE, its official files of tab-separated columns",
            tuple(f"{task.folder}/{file}" for file in ("train.tsv", *task.dev)),
        ),
        weights=Files("RoBERTa-base as Hugging Face keeps it", ("config.json", "model.safetensors", "tokenizer.json")),
        published={"GeN": gen, "linear warm-up and decay": schedule},
        methods=_METHODS,
        load=functools.partial(load, name, way),
        differs=f"{_VALIDATION} training examples are held out to tune on; attention weights have no dropout.",
    )


def load(name: str, way: str, data: Path, weights: Path) -> Workload:
    """Classification by the first token; `x` are tokens `[n, length]`, as long as the longest text, at most 512."""
    task = TASKS[name]
    folder = data / task.folder
    module = roberta_of(weights, len(task.labels), _LORA_RANK if way == "lora" else 0)
    read = functools.partial(_read, task=task, tokenizer=weights / "tokenizer.json", module=module)
    train, validation = held_out(read([folder / "train.tsv"]), _VALIDATION)
    splits = {"train": train, "validation": validation, "test": read([folder / file for file in task.dev])}
    random_init, apply = flax_functions(module, train["x"][:1])

    def init(key):
        params, model_state = random_init(key)
        return with_weights(params, _published(weights, module)), model_state

    def loss_fn(params, model_state, batch, key):
        logits, model_state = apply(params, model_state, batch["x"], key)
        return cross_entropy(logits, batch["y"]).mean(), model_state

    def per_example(params, model_state, batch):
        logits, _ = apply(params, model_state, batch["x"])
        return {"loss": cross_entropy(logits, batch["y"]), "class": jnp.argmax(logits, -1)}

    over = map_over(per_example, splits, chunk=100)

    def evaluate(params, model_state, split):
        found = over(params, model_state, split)
        value = METRICS[task.metric](found["class"], splits[split]["y"])
        return {"loss": float(np.mean(found["loss"], dtype=np.float64)), task.metric: value}

    return Workload(
        name=f"roberta_{way}_{name}",
        base="adamw",
        weight_decay=0.01,
        num_steps=steps_of(_EPOCHS, len(train["y"]), _BATCH),
        batch_size=_BATCH,
        metric=task.metric,
        higher_is_better=True,
        init=init,
        loss_fn=microbatched(loss_fn, _MICROBATCH),
        batches=batches_of(train),
        evaluate=evaluate,
        trainable=None if way == "full" else functools.partial(_trainable, way),
    )


def _trainable(way: str, params: Any) -> Any:
    """The head, and the adapters or the biases."""

    def chosen(path):
        return is_adapter(path) if way == "lora" else path[-1] == "bias"

    return path_aware_map(lambda path, _: path[0].startswith("head") or chosen(path), params)


class Roberta(nn.Module):
    """RoBERTa (Liu et al., 2019) as a classifier: tokens `[batch, length]` to logits, by the first token's output."""

    num_classes: int
    vocabulary: int
    max_length: int
    width: int
    depth: int
    num_heads: int
    pad: int
    epsilon: float
    dropout: float
    lora_rank: int

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        initial = nn.initializers.normal(0.02)
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        mask = (tokens != self.pad)[:, None, None, :]
        x = nn.Embed(self.vocabulary, self.width, embedding_init=initial, name="words")(tokens)
        x = x + self.param("positions", initial, (self.max_length, self.width))[: tokens.shape[1]]
        x = x + self.param("segment", initial, (self.width,))
        x = dropout(nn.LayerNorm(epsilon=self.epsilon, name="norm")(x))
        for index in range(self.depth):
            layer = Layer(self.num_heads, self.dropout, self.lora_rank, self.epsilon, name=f"layer_{index}")
            x = layer(x, mask, train)
        x = nn.tanh(nn.Dense(self.width, name="head_hidden")(dropout(x[:, 0])))
        return nn.Dense(self.num_classes, name="head")(dropout(x))


def roberta_of(folder: Path, num_classes: int, lora_rank: int = 0) -> Roberta:
    """The network that `config.json` describes."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    pad = config["pad_token_id"]
    return Roberta(
        num_classes=num_classes,
        vocabulary=config["vocab_size"],
        max_length=config["max_position_embeddings"] - pad - 1,  # the first ones are never used
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        pad=pad,
        epsilon=config["layer_norm_eps"],
        dropout=config["hidden_dropout_prob"],
        lora_rank=lora_rank,
    )


def _published(folder: Path, module: Roberta) -> dict[str, np.ndarray]:
    """The weights by the names that BERT's have, and positions from the first one that is used."""
    weights = {name.removeprefix("roberta."): array for name, array in read_weights(folder).items()}
    positions = "embeddings.position_embeddings.weight"
    for name in (positions, f"encoder.layer.{module.depth - 1}.output.dense.bias"):
        if name not in weights:
            raise ValueError(f"The weights have no array {name}, which config.json implies: they are of another model.")
    return {**weights, positions: weights[positions][module.pad + 1 :]}


def _read(paths: list[Path], task: Task, tokenizer: Path, module: Roberta) -> Arrays:
    rows = [row for path in paths for row in read_glue(path, task)]
    texts = [text[0] if len(text) == 1 else text for text, _ in rows]
    length = min(_MAX_LENGTH, module.max_length)
    return {"x": tokenize(texts, tokenizer, length, module.pad), "y": np.array([y for _, y in rows], np.int32)}


def read_glue(path: Path, task: Task) -> Iterator[tuple[tuple[str, ...], int]]:
    """The sentence, or the two, and the class of each row.

    Raises:
      ValueError: on a row that lacks a column, or has a label that the task does not know.
    """
    # No quoting, and only a line feed ends a row: sentences hold quotation marks and other ends of lines.
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        rows = ((number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(file, 1))
        names = next(rows, (0, []))[1] if task.header else None
        if names is not None and not {*task.texts, task.label} <= set(names):
            raise ValueError(f"{path} names no columns {', '.join((*task.texts, task.label))}: is it {task.folder}?")
        *texts, label = (names.index(name) if names else name for name in (*task.texts, task.label))
        for number, row in rows:
            is_short = len(row) <= max(*texts, label)
            if is_short and task.skips_short_rows:
                continue
            if is_short or row[label] not in task.labels:
                raise ValueError(f"{path}, line {number}: no row of {task.folder} with its label.")
            yield tuple(row[text] for text in texts), task.labels.index(row[label])


def accuracy(found: np.ndarray, true: np.ndarray) -> float:
    """The share of the examples whose class is found."""
    return float(np.mean(found == true))


def f1(found: np.ndarray, true: np.ndarray) -> float:
    r"""The harmonic mean of precision and recall of class 1, :math:`2 TP / (2 TP + FP + FN)`; 0 where there is none."""
    hits = np.sum((found == 1) & (true == 1))
    return float(2 * hits / max(1, np.sum(found == 1) + np.sum(true == 1)))


def matthews(found: np.ndarray, true: np.ndarray) -> float:
    """The correlation of two classes; 0 where one of the two is never found or never true."""
    if len(set(found.tolist())) < 2 or len(set(true.tolist())) < 2:
        return 0.0
    return float(np.corrcoef(found, true)[0, 1])


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"accuracy": accuracy, "f1": f1, "matthews": matthews}
