"""The demo: it trains, draws, and says how GeN did, also where it did badly."""

import io
import re
import sys

import numpy as np
import pytest

pytest.importorskip("rich")

from gen_optax import demo


def run_of(test_loss):
    return demo.Run(np.ones(40), np.full(40, 0.1), test_loss)


def test_it_trains_prints_and_draws(monkeypatch, tmp_path, capsys):
    """Two seeds of each row, for a few steps."""
    monkeypatch.setattr(demo, "NUM_STEPS", 40)
    monkeypatch.setattr(demo, "CHUNK", 20)
    monkeypatch.setattr(demo, "RATES", (1e-3, 1e-2))
    monkeypatch.setattr(sys, "argv", ["demo", "--seeds", "2", "--output", str(tmp_path / "demo.png")])
    demo.main()
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("AdamW, 0.001", "AdamW, 0.01", "GeN, no rate given", "found", "GeN ends"))
    assert (tmp_path / "demo.png").stat().st_size > 10_000


class Pipe(io.StringIO):
    """Keeps what had been written at each flush, with the number of training runs that were over by then."""

    def __init__(self):
        super().__init__()
        self.seen, self.runs = {}, 0

    def flush(self):
        for line in self.getvalue().splitlines():
            self.seen.setdefault(line, self.runs)


def test_off_a_terminal_each_stage_is_a_line_once_it_is_finished(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "RATES", (1e-3, 1e-2))
    monkeypatch.setattr(sys, "argv", ["demo", "--seeds", "2", "--output", str(tmp_path / "demo.png")])
    monkeypatch.setattr(sys, "stdout", pipe := Pipe())

    class Trainer:
        def __init__(self, tx, data):
            pass

        def run(self, rate, seed, advance):
            pipe.runs += 1
            return demo.Run(np.ones(demo.NUM_STEPS), np.full(demo.NUM_STEPS, 0.1), 1.0)

    monkeypatch.setattr(demo, "Trainer", Trainer)
    demo.main()
    stages = [line for line in pipe.getvalue().splitlines() if re.search(r": \d+ s$", line)]
    assert [line.rsplit(":", 1)[0] for line in stages] == [
        "compiling",
        "AdamW, 0.001, 600 steps",
        "AdamW, 0.01, 600 steps",
        "compiling",
        "GeN, no rate given, 600 steps",
    ]
    assert [pipe.seen[line] for line in stages if "steps" in line] == [2, 4, 6]
    assert "━" not in pipe.getvalue().split("GeN, no rate given, 600")[0]  # no bar


def test_a_run_learns_and_applies_the_rate_that_is_drawn(monkeypatch):
    monkeypatch.setattr(demo, "NUM_STEPS", 40)
    monkeypatch.setattr(demo, "CHUNK", 20)
    run = demo.Trainer(demo.swept(), demo.load()).run(1e-2, 0, lambda steps: None)
    assert run.losses[-5:].mean() < run.losses[0] - 0.5
    assert run.learning_rates.max() == pytest.approx(1e-2, rel=1e-3)
    assert abs(run.test_loss - run.losses[-5:].mean()) < 0.5


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (1.0, "1.000 below the best of the sweep (AdamW, 0.01) and is better than 3 of 3 rates"),
        (2.5, "0.500 above the best of the sweep (AdamW, 0.01) and is better than 2 of 3 rates"),
        (9.0, "7.000 above the best of the sweep (AdamW, 0.01) and is better than 1 of 3 rates"),
    ],
)
def test_the_verdict_says_what_came_out(own, says):
    """Also where GeN lost; a run that diverged is worse than any."""
    ends = {"AdamW, 0.001": 3.0, "AdamW, 0.01": 2.0, "AdamW, 0.1": np.nan, demo._NAME: own}
    assert says in demo.verdict({name: [run_of(end)] * 2 for name, end in ends.items()})
