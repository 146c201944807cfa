"""The command line of the suite.

A method is a family with settings, for example `gen:probe=exact,sigma=1.5,num_steps=auto`.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import rich

import gen_optax
from benchmarks import methods, questions, rule, runner, store, tune
from benchmarks.questions import Study


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    options.command(options)


def list_everything(options: argparse.Namespace) -> None:
    """Workloads, methods and questions by name."""
    from benchmarks.workloads import WORKLOADS

    first_line = {name: questions.module(name).__doc__.split("\n")[0] for name in questions.NAMES}
    print("workloads\n  " + "\n  ".join(WORKLOADS))
    print("methods\n  " + "\n  ".join(methods.FAMILIES))
    print("base optimizers (base=...)\n  " + "\n  ".join(methods.BASES))
    print("questions\n  " + "\n  ".join(f"{name:12} {line}" for name, line in first_line.items()))


def fetch(options: argparse.Namespace) -> None:
    """Installs the data by package name."""
    from benchmarks.data.fetch import fetch as install

    install(options.names)


def run(options: argparse.Namespace) -> None:
    """Trains every workload with every method on every seed, and prints what came out."""
    study = _study(options)
    specs = [methods.parse(text) for text in options.methods]
    for workload in study.chosen(_all_workloads()):
        for spec in specs:
            methods.build(spec, workload, workload.num_steps)  # a misspelt setting is an error now, not a row later
        changes = {name: value for name in ("batch_size", "num_steps", "precision") if (value := vars(options)[name])}
        for cell in study.train(workload, specs, **changes):
            rich.get_console().print(_line(cell), soft_wrap=True)


def tune_baselines(options: argparse.Namespace) -> None:
    """Chooses the baseline's learning rate and schedule on the validation split."""
    study = _study(options)
    for workload in study.chosen(_all_workloads()):
        choice = tune.tune(workload, study.results)
        print(f"{workload.name}: {choice['best']}")


def write_report(options: argparse.Namespace) -> None:
    """Writes tables and pictures from the results that there are."""
    from benchmarks.report import report

    results = _results(options)
    for path in report(results):
        print(path)
    if not any(map(rule.depends, rule.Today(results).cells())):
        print(f"No run of GeN is of today's rule, {rule.fingerprint()}. If it gives the results of a former one:")
        print("python -m benchmarks vouch, then python -m benchmarks report")


def check_documents(options: argparse.Namespace) -> None:
    """Compares README and docs with the results; says what differs, and which command mends it."""
    from benchmarks import check

    results = _results(options)
    if options.write:
        for path in check.write(results):
            print(f"numbers put into {path}")
    found = list(check.faults(results))
    print("\n".join(found) or "Every claim is as the results have it.")
    if found:
        raise SystemExit(1)


def draw_sweep(options: argparse.Namespace) -> None:
    """Runs the demo and keeps what it draws as the README's picture, with today's rule in the file."""
    from benchmarks import picture

    picture.draw()
    print(picture.NAME)


def vouch_for_the_rule(options: argparse.Namespace) -> None:
    """Trains the golden runs again; if they come out as before, today's rule counts as the one they are of."""
    from benchmarks import vouch

    results, load = _results(options), _load(options.tiny)
    if options.renew:
        print("\n".join(vouch.renew(results, load)))
        return
    vouched, lines = vouch.again(results, load) if options.again else vouch.vouch(results, load, options.but_where)
    print("\n".join(lines))
    if not vouched:
        raise SystemExit(1)


def prune_results(options: argparse.Namespace) -> None:
    """Deletes the results of other rules than today's."""
    removed = rule.prune(_results(options))
    lines = [f"{count} results of rule {name} are deleted." for name, count in sorted(removed.items())]
    print("\n".join(lines) or f"All results are of today's rule, {rule.fingerprint()}, or of none.")


def question(options: argparse.Namespace) -> None:
    """Measures what a question needs and writes the report."""
    questions.module(options.name).run(_study(options))
    write_report(options)


def reproduce_paper(options: argparse.Namespace) -> None:
    """Trains a setting of the paper and prints both results; without a name, lists the settings and what they need."""
    from benchmarks import reproduce

    if options.name is None:
        print("\n".join(reproduce.described(reproduce.known().values())))
        return
    if options.data is None:
        raise SystemExit(
            "Name the folder with the data: --data FOLDER. Without a name, `reproduce` says what is needed."
        )
    try:
        setting = reproduce.get(options.name)
        cells = reproduce.run(
            setting,
            options.data,
            options.weights,
            results=options.results or reproduce.RESULTS,
            specs=options.methods,
            seeds=options.seeds,
            batch_size=options.batch_size,
            num_steps=options.num_steps,
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print("\n".join(reproduce.table(setting, cells)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def add(name, command):
        new = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        new.set_defaults(command=command)
        return new

    add("list", list_everything)
    add("fetch", fetch).add_argument("names", nargs="*", help="data sets; all by default")
    training = add("run", run)
    training.add_argument("--methods", nargs="+", default=methods.QUALITY, help="default: those of the quality table")
    training.add_argument("--batch-size", type=int, help="default: the workload's own")
    training.add_argument("--num-steps", type=int, help="default: the workload's own")
    training.add_argument("--precision", choices=("float32", "mixed", "bfloat16"))
    tuning = add("tune", tune_baselines)
    reporting = add("report", write_report)
    checking = add("check", check_documents)
    checking.add_argument("--write", action="store_true", help="first put the numbers of the results into the claims")
    add("sweep", draw_sweep)
    vouching = add("vouch", vouch_for_the_rule)
    mode = vouching.add_mutually_exclusive_group()
    mode.add_argument("--renew", action="store_true", help="make golden runs of today's rule instead")
    mode.add_argument("--again", action="store_true", help="compare the runs of this machine, whatever the rule")
    statuses = [status.name.lower() for status in gen_optax.ProbeStatus]
    about = "runs may differ after a probe of this status, such as jump"
    mode.add_argument("--but-where", metavar="STATUS", choices=statuses, help=about)
    pruning = add("prune", prune_results)
    asking = add("question", question)
    asking.add_argument("name", choices=questions.NAMES)
    reproducing = add("reproduce", reproduce_paper)
    reproducing.add_argument("name", nargs="?", help="a setting; none to list them all")
    reproducing.add_argument("--data", type=Path, help="folder with the data, in the official files")
    reproducing.add_argument("--weights", type=Path, help="folder with the pretrained weights, where there are any")
    reproducing.add_argument("--methods", nargs="+", default=(), help="default: GeN twice and the tuned schedule")
    reproducing.add_argument("--seeds", nargs="+", type=int, default=runner.SEEDS)
    reproducing.add_argument("--batch-size", type=int, help="default: the paper's")
    reproducing.add_argument("--num-steps", type=int, help="default: the paper's")
    reproducing.add_argument("--results", type=Path, help="folder for results; default: build/reproduce")
    for command in (training, tuning, asking):
        command.add_argument("--workloads", nargs="+", default=(), help="default: all, or the question's own choice")
    for command in (training, asking):
        command.add_argument("--seeds", nargs="+", type=int, default=runner.SEEDS)
    for command in (training, tuning, reporting, asking, checking, vouching, pruning):
        command.add_argument("--tiny", action="store_true", help=f"a smoke test; results go to {store.TINY_RESULTS}")
        command.add_argument("--results", type=Path, help=f"folder for results; default: {store.RESULTS.name}/ here")
    return parser


def _study(options: argparse.Namespace) -> Study:
    return Study(
        results=_results(options),
        load=_load(options.tiny),
        workloads=tuple(options.workloads),
        seeds=tuple(vars(options).get("seeds", ())),
        tiny=options.tiny,
    )


def _load(tiny: bool):
    from benchmarks.workloads import get

    return functools.partial(get, tiny=tiny)


def _results(options: argparse.Namespace) -> store.Store:
    return store.Store(options.results or (store.TINY_RESULTS if options.tiny else store.RESULTS))


def _all_workloads():
    from benchmarks.workloads import WORKLOADS

    return WORKLOADS


def _line(cell) -> str:
    key, final = cell["key"], cell.get("final")
    if final is None:
        outcome = cell["error"]
    else:
        split = "test" if "test" in final else "validation"
        outcome = ", ".join(f"{split} {name} {value}" for name, value in final[split].items())
        outcome += " [red]diverged[/]" if cell["diverged"] else ""
    return f"{key['workload']}  {key['method']}  seed {key['seed']}  {outcome}"


if __name__ == "__main__":
    main()
