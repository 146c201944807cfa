"""Every workload under the training loop. Traced, not compiled: the workloads' own tests run them."""

import jax
import pytest

from benchmarks import methods, runner
from benchmarks.workloads import WORKLOADS, get


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("spec", ["gen_horizon", "cdat"])
def test_a_step_leaves_the_state_as_it_should_be(name, spec):
    workload = get(name, tiny=True)
    method = methods.build(methods.parse(spec), workload, workload.num_steps)
    batch, others = next(runner.batches_for(workload, method, 1, workload.batch_size))

    def one_step(key):
        state, step = runner.start(workload, method, *workload.init(key))
        return state, *step(state, batch, others, key)

    before, after, scalars = jax.eval_shape(one_step, jax.random.key(0))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(before)] == [(x.shape, x.dtype) for x in jax.tree.leaves(after)]
    assert {x.shape for x in jax.tree.leaves(scalars)} == {()}
