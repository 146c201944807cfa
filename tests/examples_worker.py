"""One of the processes of `test_examples.py`: `examples_worker.py PROCESS_ID NUM_PROCESSES PORT SCRIPT *ARGUMENTS`."""

import runpy
import sys

from processes import join, leave

if __name__ == "__main__":
    process_id, num_processes, port = map(int, sys.argv[1:4])
    join(process_id, num_processes, port)
    sys.argv = sys.argv[4:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    leave(num_processes)
    print("null")  # `processes.start` reads JSON
