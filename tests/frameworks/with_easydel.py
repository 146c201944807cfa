"""A tiny Llama through EasyDeL's trainer, by the recipe of the page and with its AdamW as it is."""

import tempfile

import datasets
import easydel as ed
import flax.nnx as nn
import jax.numpy as jnp
import numpy as np
from page import NUM_STEPS, report, run_page

import gen_optax

LENGTH, VOCABULARY, BATCH = 16, 64, 8


def new_model():
    config = ed.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=LENGTH, attn_mechanism="vanilla",
    )  # fmt: skip
    model = ed.LlamaForCausalLM(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nn.Rngs(0))
    return model.shard_model()


def texts():
    """Texts that count upwards by one or two."""
    rng = np.random.default_rng(0)
    size = 2 * BATCH * NUM_STEPS  # two micro-batches a step
    first, step = rng.integers(VOCABULARY, size=(size, 1)), rng.integers(1, 3, size=(size, 1))
    tokens = (first + step * np.arange(LENGTH)) % VOCABULARY
    return datasets.Dataset.from_dict({"input_ids": tokens, "attention_mask": np.ones_like(tokens)})


def new_arguments(folder, logged):
    arguments = ed.TrainingArguments(
        save_directory=folder,
        num_train_epochs=1,
        max_training_steps=NUM_STEPS,
        total_batch_size=BATCH,
        gradient_accumulation_steps=2,
        max_length=LENGTH,
        learning_rate=1e-3,
        log_steps=1,
        report_steps=1,
        progress_bar_type="json",
        use_wandb=False,
        do_last_save=False,
        save_optimizer_state=False,
    )
    write = arguments.log_metrics

    def log_metrics(metrics, step, *args, **kwargs):
        logged.append(dict(metrics))
        return write(metrics, step, *args, **kwargs)

    arguments.log_metrics = log_metrics
    return arguments


with tempfile.TemporaryDirectory() as folder:
    stock, logged = [], []
    dataset = texts()
    ed.Trainer(arguments=new_arguments(f"{folder}/stock", stock), model=new_model(), dataset_train=dataset).train()
    page = run_page("easydel", arguments=new_arguments(f"{folder}/gen", logged), model=new_model(), dataset=dataset)
    steps = [line for line in logged if "train/loss" in line]
    report(
        "easydel",
        [line["train/loss"] for line in steps],
        [line["train/loss"] for line in stock if "train/loss" in line],
        gen_optax.metrics(page["state"].opt_state),
        [line["train/learning_rate"] for line in steps],
    )
