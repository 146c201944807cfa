"""A tiny decoder on synthetic tokens through MaxText's pre-training, by the recipe of the page and with its AdamW."""

import json
import pathlib
import sys
import tempfile

import maxtext
import numpy as np
from flax import nnx
from maxtext.trainers.pre_train import train
from page import NUM_STEPS, report, run_page

SETTINGS = {
    "hardware": "cpu",
    "dataset_type": "synthetic",
    "steps": NUM_STEPS,
    "enable_checkpointing": False,
    "skip_jax_distributed_system": True,
    "decoder_block": "llama2",
    "base_emb_dim": 32,
    "base_num_query_heads": 2,
    "base_num_kv_heads": 2,
    "base_mlp_dim": 64,
    "base_num_decoder_layers": 2,
    "head_dim": 16,
    "vocab_size": 64,
    "max_target_length": 16,
    "per_device_batch_size": 8,
    "attention": "dot_product",
    "enable_goodput_recording": False,
    "monitor_goodput": False,
    "log_period": 1,
}


def arguments(folder, name, **settings):
    settings = {**SETTINGS, "run_name": name, "base_output_directory": folder, **settings}
    settings["metrics_file"] = f"{folder}/{name}.jsonl"
    config = pathlib.Path(maxtext.__file__).parent / "configs" / "base.yml"
    return ["train", str(config), *(f"{key}={value}" for key, value in settings.items())]


def logged(folder, name):
    return [json.loads(line) for line in pathlib.Path(folder, f"{name}.jsonl").read_text().splitlines()]


with tempfile.TemporaryDirectory() as folder:
    train.main(arguments(folder, "stock"))
    stock = [line["learning/loss"] for line in logged(folder, "stock")]

    sys.argv = arguments(folder, "gen")
    page = run_page("maxtext")
    lines = logged(folder, "gen")
    report(
        "maxtext",
        [line["learning/loss"] for line in lines],
        stock,
        {name.removeprefix("gen/"): x for name, x in lines[-1].items()},
        [line["gen/applied_learning_rate"] for line in lines],
    )

    # The probe evaluates the loss that MaxText reports, also where it accumulates.
    stock_step = page["stock_step"]

    def evaluating(graphdef, config, shardings, params_shardings, state, data):
        merged = nnx.merge(graphdef, state)
        value_fn = page["make_value_fn"](merged, config, data)
        value = value_fn(nnx.state(merged.model, merged.optimizer.wrt))
        state, metrics = stock_step(graphdef, config, shardings, params_shardings, state, data)
        metrics["scalar"]["probed_loss"] = value
        return state, metrics

    page["stock_step"] = evaluating
    train.main(arguments(folder, "accumulated", gradient_accumulation_steps=2))
    lines = logged(folder, "accumulated")
    np.testing.assert_allclose(
        *zip(*((line["probed_loss"], line["learning/loss"]) for line in lines), strict=True), rtol=1e-4
    )
    assert lines[-1]["learning/loss"] < lines[0]["learning/loss"]
    assert lines[-1]["gen/learning_rate"] > 0
