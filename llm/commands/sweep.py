"""`python -m llm sweep`: many methods on one model, and one table of them all."""

from __future__ import annotations

from llm.jobs.dividing import dealt_out
from llm.jobs.planning import planned, runs_at_a_time
from llm.jobs.sweeping import Sweep, checked, jobs_of, runs_of, swept, task_of
from markov.console.parts import asked_part

ENDINGS = {
    "not forgetting": "did not forget: its answers are as likely as before, or likelier",
    "collapsed": "collapsed, worse than guessing on what is to stay",
    "nan": "diverged",
}


def sweep(command: Sweep) -> None:
    """Make the runs that are not there, and print their table; or make a part of them."""
    from llm.logs.summaries import lacking, markdown

    command = checked(command)
    runs = runs_at_a_time(jobs_of(command), len(runs_of(command)))
    planned(command, training=True, writing=command.max_new_tokens, runs=runs)
    task_of(command)
    rates = {f"{run.optimization.learning_rate:g}" for run in runs_of(command)}
    beside = f", beside {command.retrained}" if command.retrained else ", beside no retrained model"
    print(f"{command.model} unlearns {command.data}{beside}; learning rate {', '.join(rates)}")
    part = asked_part(command.part, command.collect)
    if part is not None:
        _make_part(command, *part)
        return
    found = swept(command)
    measures = found.measures
    ended = measures.loc[measures["status"].isin(list(ENDINGS)), ["model", "status"]]
    print(markdown(found.summary))
    if left := lacking(measures):
        print(f"left out, since the data for it are missing: {', '.join(left)}")
    if len(found.best):
        print(
            f"truth ratio: {command.variant}; n: examples compared; best of each method: the "
            "smallest D with at least"
        )
        print(
            f"{1 - command.tolerance:.0%} of the original's utility, or where none has that the "
            "largest utility"
        )
        print(found.best.to_string(index=False, float_format="{:.3f}".format))
    else:
        print("no best settings: these are chosen by D and model utility")
    for model, status in ended.drop_duplicates().itertuples(index=False):
        print(f"{model}: {ENDINGS[status]}")
    print(f"{len(found.measures)} rows: {command.out / 'sweep.parquet'}")


def _make_part(command: Sweep, part: int, count: int) -> None:
    from llm.sweeps.parts import make_part, missing

    task, runs, jobs = task_of(command), runs_of(command), jobs_of(command)
    with dealt_out(command, jobs, command.out):
        made = make_part(command.out, task, runs, part, count, n_jobs=jobs)
    left = len(missing(command.out, task, runs))
    print(f"part {part}/{count}: {made} models; of the whole sweep {left} are missing")
