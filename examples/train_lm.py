"""Trains a small GPT on the bytes of a text, with a learning rate that nobody set. Copy it and change it.

    python examples/train_lm.py runs/first                      # until Ctrl-C, on a text that comes with Python
    python examples/train_lm.py runs/second --text book.txt --num-steps 2000

The same command goes on where a run was interrupted, to the bit, also with another number of hosts. The batch is split
over all devices there are. On a pod every host runs this file with `--distributed` and a folder that all of them see.
Devices that are simulated on a CPU need `--log-every 1`: they deadlock when several steps are in flight.
"""

import argparse
import functools
import itertools
import json
import pathlib
import pydoc_data.topics
import signal

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tqdm
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gen_optax
import gen_optax.linen


class GPT(nn.Module):
    """A causal language model of bytes: bfloat16 arithmetic, float32 parameters."""

    width: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, tokens):
        """Bytes ``[batch, length]`` to the logits of the next ones, ``[batch, length, 256]``."""
        dense = functools.partial(nn.Dense, use_bias=False, dtype=jnp.bfloat16)
        embed = functools.partial(nn.Embed, features=self.width, dtype=jnp.bfloat16)
        norm = functools.partial(nn.RMSNorm, dtype=jnp.bfloat16)
        x = embed(256)(tokens) + embed(tokens.shape[1], name="positions")(jnp.arange(tokens.shape[1]))
        for _ in range(self.depth):
            heads = dense(3 * self.width)(norm()(x)).reshape(*tokens.shape, 3 * self.num_heads, -1)
            attended = jax.nn.dot_product_attention(*jnp.split(heads, 3, axis=2), is_causal=True)
            x += dense(self.width)(attended.reshape(x.shape))
            x += dense(self.width)(nn.gelu(dense(4 * self.width)(norm()(x))))
        return dense(256)(norm()(x)).astype(jnp.float32)


def batches(tokens, start, args, sharding):
    """From batch number `start` on: windows of the text, ``[accumulation, batch_size, length + 1]``, without end.

    The number of the step is all that a checkpoint has to know of the loader. Each host reads every n-th window of one
    global order, so this number means the same for any number of hosts.
    """
    windows = np.lib.stride_tricks.sliding_window_view(tokens, args.length + 1)[:: args.length]
    dataset = grain.MapDataset.source(windows).seed(args.seed).shuffle().repeat()
    share = dataset[jax.process_index() :: jax.process_count()]
    share = share.batch(args.accumulation * args.batch_size // jax.process_count())
    for batch in share[start:].to_iter_dataset():
        local = batch.astype(np.int32).reshape(args.accumulation, -1, args.length + 1)
        yield jax.make_array_from_process_local_data(sharding, local)


def train_step(state, microbatches, loss_fn):
    """One step of the optimizer: gradients are added up over the micro-batches, and a probe sees all of them."""
    value, grads = gen_optax.mean_value_and_grad(loss_fn, microbatches)(state.params)
    value_fn = gen_optax.mean_value_fn(loss_fn, microbatches)
    state = state.apply_gradients(grads=grads, value=value, value_fn=value_fn)
    return state, {"loss": value, **gen_optax.metrics(state)}


def main(args):
    """Creates or restores the state, trains, and says what came of it."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "data"))
    text = args.text.read_bytes() if args.text else "\n".join(pydoc_data.topics.topics.values()).encode()
    training, validation = np.split(np.frombuffer(text, np.uint8), [len(text) * 9 // 10])

    model = GPT(args.width, args.depth, args.num_heads)
    # Learning rate 1: GeN finds what it is multiplied by. Clipping stays inside, so that GeN gets the raw gradient.
    decayed = functools.partial(jax.tree.map, lambda p: p.ndim > 1)  # matrices, not the scales of norms
    base = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1.0, b2=0.95, weight_decay=0.1, mask=decayed))
    tx = gen_optax.gen(base, num_steps=args.num_steps)

    @functools.partial(jax.jit, out_shardings=everywhere)
    def create():
        params = model.init(jax.random.key(args.seed), jnp.zeros((1, args.length), jnp.int32))["params"]
        return gen_optax.linen.TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    def loss_fn(params, batch):
        logits = model.apply({"params": params}, batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    options = ocp.CheckpointManagerOptions(save_interval_steps=args.save_every, max_to_keep=2)
    with ocp.CheckpointManager(args.folder.resolve(), options=options) as manager:
        start = manager.latest_step() or 0
        state = manager.restore(start, args=ocp.args.StandardRestore(create.eval_shape())) if start else create()

        stopped = []  # by Ctrl-C, in between two steps
        signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
        step_fn = jax.jit(functools.partial(train_step, loss_fn=loss_fn), donate_argnums=0)
        steps = range(start + 1, args.num_steps + 1) if args.num_steps else itertools.count(start + 1)
        leads = jax.process_index() == 0
        bar = tqdm.tqdm(steps, initial=start, total=args.num_steps, disable=not leads)
        with open(args.folder / f"metrics_{jax.process_index()}.jsonl", "a", buffering=1) as log:
            for step, batch in zip(bar, batches(training, start, args, split), strict=False):
                state, metrics = step_fn(state, batch)
                if step % args.log_every == 0:  # reading waits for the device: not at every step
                    metrics = {name: x.item() for name, x in jax.device_get(metrics).items()}
                    bar.set_postfix(loss=metrics["loss"], rate=metrics["applied_learning_rate"])
                    log.write(json.dumps({"step": step, **metrics}) + "\n")
                manager.save(step, args=ocp.args.StandardSave(state))  # when it is due
                if stopped:
                    break
        step = int(state.step)
        if step not in manager.all_steps():
            manager.save(step, args=ocp.args.StandardSave(state), force=True)

    evaluate = jax.jit(lambda params, batch: gen_optax.mean_value_fn(loss_fn, batch)(params))
    held_out = list(itertools.islice(batches(validation, 0, args, split), 8))
    loss = np.mean([evaluate(state.averaged_params, batch) for batch in held_out])
    found = gen_optax.metrics(state)
    if leads:
        print(f"step {step}: learning rate {found['learning_rate']:.2e}, found with {found['num_probes']} probes")
        print(f"validation loss {loss:.4f} nats per byte")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A small GPT on the bytes of a text.")
    parser.add_argument("folder", type=pathlib.Path, help="of checkpoints and metrics; a run that is there goes on")
    parser.add_argument("--text", type=pathlib.Path, help="a file (default: the language reference in Python)")
    parser.add_argument("--num-steps", type=int, help="horizon with a decay (default: until Ctrl-C, without one)")
    parser.add_argument("--distributed", action="store_true", help="join the other hosts of a pod")
    defaults = {"batch-size": 64, "accumulation": 2, "length": 128, "width": 128, "depth": 4, "num-heads": 4, "seed": 0}
    for name, default in (defaults | {"log-every": 10, "save-every": 500}).items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.distributed:
        jax.distributed.initialize()
    main(arguments)
