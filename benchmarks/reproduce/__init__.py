r"""The paper's settings (Bu and Xu, arXiv 2407.02772), to be trained by who has the data and an accelerator.

    known()["roberta_lora_sst2"]      # what it is, what it needs, what the paper has
    cells = run(setting, Path("data"), results=Path("build/reproduce"))
    print(*table(setting, cells), sep="\n")

A setting is a workload of the suite at its published size: the runner trains it, the store keeps its cells, and the
baseline is tuned on its validation split. No measurement of the suite reads these cells.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import methods, runner, store, tune
from benchmarks.reproduce import detection, generation, images, recommendation, understanding
from benchmarks.reproduce._common import TUNED, Reproduction

RESULTS = Path("build") / "reproduce"
"""Where cells are kept, those of different data or weights in folders of their own."""
_FAMILIES = (images, understanding, generation, recommendation, detection)


def known() -> dict[str, Reproduction]:
    """All settings by their names."""
    return {setting.name: setting for family in _FAMILIES for setting in family.reproductions()}


def get(name: str) -> Reproduction:
    """The setting of this name.

    Raises:
      ValueError: on an unknown name.
    """
    settings = known()
    if name not in settings:
        raise ValueError(f"Unknown setting {name!r}. Known: {', '.join(settings)}.")
    return settings[name]


def described(settings: Iterable[Reproduction]) -> Iterator[str]:
    """Lines that say what each setting is and what it needs."""
    for about in settings:
        yield f"{about.name}: {about.about}"
        yield f"  --data: {', '.join(about.data.paths)} ({about.data.source})"
        if about.weights:
            yield f"  --weights: {', '.join(about.weights.paths)} ({about.weights.source})"


def run(
    setting: Reproduction,
    data: Path,
    weights: Path | None = None,
    *,
    results: Path,
    specs: Sequence[str] = (),
    seeds: Sequence[int] = runner.SEEDS,
    batch_size: int | None = None,
    num_steps: int | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Trains a setting, or finds its cells.

    Args:
      setting: which one.
      data: the folder with the files that it needs.
      weights: the folder with the pretrained weights.
      results: the folder under which cells are kept, and found again for the same contents of data and weights.
      specs: methods, as `benchmarks.methods` reads them, or `"tuned"`; the setting's own where there are none.
      seeds: those to report on, from 1 to 100.
      batch_size: the setting's own unless given.
      num_steps: the setting's own unless given.

    Returns:
      The cells of each method, one for each seed, by the words for it.

    Raises:
      FileNotFoundError: where a file is missing; it says what to put where.
      ValueError: on weights that are not given or not needed, an unknown method, or a seed that may not see the test.
    """
    chosen = dict(zip(specs, specs, strict=True)) if specs else setting.methods
    if unreported := [seed for seed in seeds if not runner.is_reported(seed)]:
        raise ValueError(f"Seeds 1 to 100 see the test split; others are for tuning. Got {unreported}.")
    parsed = {name: spec if spec == TUNED else str(methods.parse(spec)) for name, spec in chosen.items()}
    _check(setting, data, weights)
    kept = _store(setting, data, weights, results)
    workload = setting.load(data, weights)
    lengths = {"batch_size": batch_size, "num_steps": num_steps}
    cells = {}
    for name, spec in parsed.items():
        if spec == TUNED:
            spec = tune.tune(workload, kept, **lengths)["best"]
            name = f"{name}: {spec}"
        cells[name] = runner.run_all(
            [runner.cell_key(workload, spec, seed, **lengths) for seed in seeds], workload, kept
        )
    return cells


def _store(setting: Reproduction, data: Path, weights: Path | None, root: Path) -> store.Store:
    """A store that knows these data and weights only, and says where they were: neither is part of a cell's key."""
    folders = {"data": (setting.data, data)}
    if setting.weights is not None and weights is not None:
        folders["weights"] = setting.weights, weights
    found = "-".join(files.fingerprint(folder) for files, folder in folders.values())
    kept = store.Store(root / found)
    kept.set_note("inputs", lambda _: {name: str(folder.resolve()) for name, (_, folder) in folders.items()})
    return kept


def _check(setting: Reproduction, data: Path, weights: Path | None) -> None:
    setting.data.check(data)
    if setting.weights is None and weights is not None:
        raise ValueError(f"{setting.name} is trained from scratch. Leave out --weights.")
    if setting.weights is not None:
        if weights is None:
            raise ValueError(f"{setting.name} begins with {setting.weights.source}. Name their folder with --weights.")
        setting.weights.check(weights)


def table(setting: Reproduction, cells: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """A table of Markdown: the paper's results and those of here, mean and deviation over the seeds."""
    every = list(itertools.chain.from_iterable(cells.values()))
    metric = next((cell["workload"]["metric"] for cell in every), "")
    yield f"| {setting.name} | test {metric} |"
    yield "|---|---|"
    for method, value in setting.published.items():
        yield f"| paper: {method} | {value:.4g} |"
    for method, of_method in cells.items():
        yield f"| here: {method} | {_result(of_method, metric)} |"
    yield f"\n{setting.differs}"
    steps = {(cell["key"]["num_steps"], cell["key"]["batch_size"]) for cell in every}
    for num_steps, batch_size in sorted(steps):
        yield f"Trained here for {num_steps} steps of {batch_size} examples."


def _result(cells: list[dict[str, Any]], metric: str) -> str:
    errors = [cell["error"] for cell in cells if cell.get("error")]
    if errors:
        return f"error: {errors[0]}"
    values = [cell["final"]["test"][metric] for cell in cells if not cell["diverged"]]
    lost = len(cells) - len(values)
    parts = []
    if values:
        spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
        parts.append(f"{np.mean(values):.4g}{spread} ({len(values)} seed{'s' * (len(values) > 1)})")
    return ", ".join([*parts, *([f"{lost} diverged"] if lost else [])])
