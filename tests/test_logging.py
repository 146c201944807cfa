"""What the loggers of the guide wrote is read back: the learning rate arrives, in files, without a network.

Tools that are not installed are skipped; `.ci/logging` installs all of them.
"""

import json
import math
import os
import pathlib
import re
import struct
import subprocess
import sys

import pytest
import test_guides

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the tools' own

PAGE = test_guides.ROOT / "docs" / "guides" / "logging.md"
NOWHERE = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}  # no network: nobody listens there


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The page in a folder of its own, and what it said."""
    folder = tmp_path_factory.mktemp("page")
    command = [sys.executable, test_guides.__file__, str(PAGE)]
    done = subprocess.run(command, cwd=folder, env=os.environ | NOWHERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


@pytest.fixture(scope="module")
def rates():
    """`(step, learning rate)`, from the loop of the page."""
    namespace, logged = {}, []
    for _, block in test_guides.blocks(PAGE.read_text()):
        if "train" not in namespace:
            exec(block, namespace)
    namespace["train"](lambda step, scalars: logged.append((step, scalars["learning_rate"])))
    assert [step for step, _ in logged] == [*range(10, 101, 10)]
    assert len({rate for _, rate in logged}) > 3
    return logged


def test_tensorboard(ran, rates):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(ran[0] / "runs" / "first"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("gen/learning_rate")] == rates


def test_weights_and_biases(ran, rates):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = ran[0].glob("wandb/offline-run-*/*.wandb")
    histories = [record.history for record in map(Record.FromString, wandb_records(path)) if record.HasField("history")]
    rows = [{item.key or item.nested_key[0]: number(item) for item in history.item} for history in histories]
    assert [(row["_step"], row["learning_rate"]) for row in rows] == rates


def wandb_records(path: pathlib.Path):
    """The records of a file of wandb: a header of 7 bytes, and a log in the format of LevelDB."""
    data, record = path.read_bytes(), b""
    position = 7
    while position + 7 <= len(data):
        if 2**15 - position % 2**15 < 7:  # a rest of a block that is too short for a head
            position += 2**15 - position % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def number(item) -> float:
    if item.value_json:
        return json.loads(item.value_json)
    return next((value for field, value in item.ListFields() if field.name in ("integer", "number")), math.nan)


def test_mlflow(ran, rates):
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{ran[0]}/mlflow.db")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [(x.step, x.value) for x in client.get_metric_history(run.info.run_id, "learning_rate")] == rates


def test_aim(ran, rates):
    aim = pytest.importorskip("aim")
    command = [pathlib.Path(sys.executable).with_name("aim"), "storage", "--repo", ran[0], "reindex"]
    subprocess.run(command, input="y", text=True, check=True, capture_output=True)  # `aim up` does that by itself
    (run,) = aim.Repo(str(ran[0])).iter_runs()
    (metric,) = [metric for metric in run.metrics() if metric.name == "learning_rate"]
    frame = metric.dataframe().sort_values("step")
    assert list(zip(frame["step"], frame["value"], strict=True)) == rates


def test_progress_bar(ran, rates):
    pytest.importorskip("tqdm")
    last = re.findall(r"100/100 .*learning_rate=([^\],]+)", ran[1])[-1]
    assert float(last) == pytest.approx(rates[-1][1], rel=1e-2)
