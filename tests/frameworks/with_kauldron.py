"""Regression by a small network through Kauldron's trainer, by the recipe of the page and with AdamW as it is."""

import dataclasses
import pathlib
import tempfile

import numpy as np
import optax
from flax import linen as nn
from kauldron import kd
from page import NUM_STEPS, report, run_page
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

import gen_optax


class Network(nn.Module):
    x: kd.kontext.Key = "batch.x"

    @nn.compact
    def __call__(self, x):
        x = kd.nn.Dropout(rate=0.1)(nn.tanh(nn.Dense(16)(x)))
        return nn.Dense(1)(x)


def examples():
    x = np.random.default_rng(0).standard_normal((512, 4), np.float32)
    return {"x": x, "y": np.sin(x.sum(1, keepdims=True))}


def new_trainer(folder):
    return kd.train.Trainer(
        workdir=folder,
        train_ds=kd.data.InMemoryPipeline(loader=examples, batch_size=64, shuffle=True, seed=0),
        model=Network(),
        num_train_steps=NUM_STEPS,
        log_metrics_every=1,
        train_losses={"l2": kd.losses.L2(preds="preds", targets="batch.y")},
        optimizer=optax.adamw(1e-3),
    )


def written(folder, name):
    """The values under a name in the event files."""
    everything = {"tensors": 0}
    events = event_accumulator.EventAccumulator(str(pathlib.Path(folder) / "train"), size_guidance=everything)
    events.Reload()
    tensors = events.Tensors(name)
    return [float(np.asarray(tensor_util.make_ndarray(t.tensor_proto))) for t in tensors]


with tempfile.TemporaryDirectory() as root:
    new_trainer(f"{root}/stock").train()
    page = run_page("kauldron", trainer=new_trainer(f"{root}/gen"))
    # The trainer makes one step more than num_train_steps and logs the state before each.
    state, _ = dataclasses.replace(page["trainer"], workdir=f"{root}/again", stop_after_steps=NUM_STEPS).train()
    report(
        "kauldron",
        written(f"{root}/gen", "losses/total"),
        written(f"{root}/stock", "losses/total"),
        gen_optax.metrics(state.opt_state),
        written(f"{root}/gen", "metrics/learning_rate"),
    )
