"""LoRA on a tiny Llama through Tunix's PeftTrainer, by the recipe of the page and with AdamW as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx
from page import NUM_STEPS, report, run_page
from tunix.models.llama3 import model as llama
from tunix.sft import peft_trainer, utils

import gen_optax

LENGTH, VOCABULARY = 16, 64


def lora_model():
    config = llama.ModelConfig(
        num_layers=2, vocab_size=VOCABULARY, embed_dim=32, hidden_dim=64, num_heads=4, head_dim=8, num_kv_heads=2,
        rope_theta=10_000, norm_eps=1e-5,
    )  # fmt: skip
    provider = qwix.LoraProvider(module_path=".*(q_proj|kv_proj|gate_proj|up_proj|down_proj)", rank=4, alpha=8.0)
    model = llama.Llama3(config, rngs=nnx.Rngs(0))
    return qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(1), **model_input(next(batches(1))))


def model_input(batch):
    mask = batch.input_mask
    return {
        "input_tokens": batch.input_tokens,
        "positions": utils.build_positions_from_mask(mask),
        "cache": None,
        "attention_mask": utils.make_causal_attn_mask(mask),
    }


def batches(n, size=8):
    """Texts that count upwards by one or two."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        first, step = rng.integers(VOCABULARY, size=(size, 1)), rng.integers(1, 3, size=(size, 1))
        tokens = (first + step * np.arange(LENGTH)) % VOCABULARY
        yield peft_trainer.TrainingInput(jnp.asarray(tokens), jnp.ones((size, LENGTH), bool))


def loss_inputs(batch):
    inputs = model_input(batch) | {"input_mask": batch.input_mask}
    del inputs["cache"]
    return inputs


def train(trainer, dataset):
    trainer.with_gen_model_input_fn(loss_inputs).train(dataset)
    assert trainer.train_steps == NUM_STEPS
    return trainer.metrics_logger.get_metric_history("", "loss", "train")


config = peft_trainer.TrainingConfig(eval_every_n_steps=1000, max_steps=NUM_STEPS)
stock = train(peft_trainer.PeftTrainer(lora_model(), optax.adamw(1e-3), config), batches(NUM_STEPS))

model = lora_model()
frozen = jax.tree.map(jnp.copy, nnx.state(model, nnx.Not(nnx.LoRAParam)))
page = run_page("tunix", model=model, config=config, loss_inputs=loss_inputs, dataset=batches(NUM_STEPS))
trainer = page["trainer"]
logger = trainer.metrics_logger
report(
    "google-tunix",
    logger.get_metric_history("", "loss", "train"),
    stock,
    gen_optax.metrics(trainer.optimizer),
    logger.get_metric_history("", "learning_rate", "train"),
)
assert jax.tree.all(jax.tree.map(jnp.array_equal, frozen, nnx.state(model, nnx.Not(nnx.LoRAParam))))

# The loss over micro-batches is that over the whole batch, and the hook logs what else there is.
trainer = page["GenTrainer"](lora_model(), gen_optax.gen_adamw(num_steps=NUM_STEPS), config)
accumulated = page["over_microbatches"](trainer.loss_fn, 4)
inputs = loss_inputs(next(batches(1, size=32)))
np.testing.assert_allclose(accumulated(trainer.model, **inputs), trainer.loss_fn(trainer.model, **inputs), rtol=1e-5)
trainer.with_training_hooks(page["GenHooks"]())
losses = train(trainer.with_loss_fn(accumulated), batches(NUM_STEPS, size=32))
assert losses[-1] < losses[0]
assert max(trainer.metrics_logger.get_metric_history("", "gen/learning_rate", "train")) > 0
