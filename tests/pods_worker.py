"""A process of `test_pods.py`: `pods_worker.py PROCESS_ID NUM_PROCESSES PORT FOLDER NUM_STEPS DATA FSDP TENSOR`.

Runs the code of `docs/guides/pods.md`, all but its last block, and trains with it. Prints the learning rates as JSON.
"""

import json
import sys

import jax
import test_guides
from processes import join, leave


def main(process_id, num_processes, port, folder, num_steps, *shape):
    join(process_id, num_processes, port)
    assert jax.process_count() == num_processes
    page = test_guides.ROOT / "docs" / "guides" / "pods.md"
    namespace = {}
    for _, block in test_guides.blocks(page.read_text())[:-1]:
        exec(block, namespace)
    rates = namespace["train"](namespace["make_mesh"](*shape), folder, num_steps)
    print(json.dumps(rates), flush=True)
    leave(num_processes)


if __name__ == "__main__":
    folder = sys.argv.pop(4)
    first, rest = sys.argv[1:4], sys.argv[4:]
    main(*map(int, first), folder, *map(int, rest))
