"""The sweeper beside the official plugin, and beside the ideal.

    python benchmarks/sweep.py toy --official VENV/bin/python       1,000 trials of a program of two parameters
    python benchmarks/sweep.py growth                               a trial behind 100, 1,000 and 10,000 others, Optuna's, Hydra's own
    python benchmarks/sweep.py search --official ... --data DIR     wall time to the best WER of 30 unpruned trials on digit strings
    python benchmarks/sweep.py refill                               4 workers, lognormal lengths, beside total work / workers
    python benchmarks/sweep.py trial --data DIR                     CPU of a warm trial that is neither training nor evaluation
    python benchmarks/sweep.py workers                              until worker n of the pool is ready to train, beside `import torch`

VENV holds the official plugin (pip install --pre hydra-core==1.4.0rc3 hydra-optuna-sweeper==1.4.0rc3 hydra-joblib-launcher
'optuna>=5,<6') and, for `search`, what speechtrain needs besides Hydra. One thread a process.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
TOY = REPOSITORY / "tests" / "toy"
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TOY), str(REPOSITORY)]),
    "SPEECHTRAIN_CONF": str(REPOSITORY / "conf"),
}


def timed(command: list[str], folder: Path, **environment: str) -> tuple[float, float, str]:
    """(wall, CPU with children, output) of a command.

    Raises:
        RuntimeError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env={**ENV, **environment}, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def toy(official: str, trials: int) -> None:
    """Cost of a trivial trial, start-up taken off (a sweep of 2 trials)."""
    space = ["x=interval(-5,5)"]
    ours = [sys.executable, str(TOY / "app.py"), "-m", *space, "n=interval(0,1)", "hydra.sweeper.check=null"]
    theirs = [official, str(HERE / "official_sweeper" / "app.py"), "-m", *space, "y=interval(0,1)", "hydra.sweeper.n_jobs=1"]
    arms = {
        "ours, journal": (ours, "null"),
        "ours, SQLite": (ours, "sqlite:///study.db"),
        "ours, memory": (ours, "memory://"),
        "official, SQLite": (theirs, "sqlite:///study.db"),
        "official, memory": (theirs, "null"),
    }
    cost = {}
    for name, (command, storage) in arms.items():
        took = {}
        for count in (2, trials):
            with tempfile.TemporaryDirectory() as folder:
                chosen = [f"hydra.sweeper.n_trials={count}", f"hydra.sweeper.storage='{storage}'" if storage != "null" else ""]
                path = {} if command is ours else {"PYTHONPATH": ""}  # the official plugin without ours beside it
                took[count] = timed([*command, *filter(None, chosen), "hydra.sweeper.study_name=toy"], Path(folder), **path)
        cost[name] = [1000 * (took[trials][index] - took[2][index]) / (trials - 2) for index in (0, 1)]
        print(f"{name:18s} {cost[name][0]:6.1f} ms wall  {cost[name][1]:6.1f} ms CPU a trial", flush=True)
    for ours_name, theirs_name in (
        ("ours, SQLite", "official, SQLite"),
        ("ours, journal", "official, SQLite"),
        ("ours, memory", "official, memory"),
    ):
        print(f"{ours_name} / {theirs_name}: {cost[ours_name][0] / cost[theirs_name][0]:.2f} of the wall time")


def growth(trials: int, lengths: list[int], only: str) -> None:
    """CPU of a trivial trial in studies of growing length, beside plain Optuna's on the same storage and Hydra's own sweeper's.

    Each process notes at every job what it has used so far, so that nothing of its start counts. Where other programs run, all three take
    longer: Hydra's is measured anew for each row.
    """
    print(f"{'':24s}behind   ours  Optuna  Hydra    ours/first  (ours - Optuna)/Hydra     ms CPU a trial", flush=True)
    with tempfile.TemporaryDirectory() as name, database(Path(name)) as postgresql:
        storages = {"journal": "journal:///{}/study.journal", "SQLite": "sqlite:///{}/study.db", "PostgreSQL": postgresql}
        for workers, sampler, (kind, storage) in itertools.product((1, 4), ("random", "tpe"), storages.items()):
            arm = kind + (", TPE" if sampler == "tpe" else "") + (f", {workers} workers" if workers > 1 else "")
            if storage is None or not re.fullmatch(only, arm):
                continue
            folder = Path(name) / arm.replace(" ", "_").replace(",", "")
            folder.mkdir()
            url, study = storage.format(folder), folder.name
            growing(folder, url, study, sampler, workers, 2)
            first = None
            for length in lengths:
                count = int(timed([sys.executable, str(GROWTH / "fill.py"), url, study, str(length)], folder)[2])
                ours = growing(folder, url, study, sampler, workers, count + trials)[0]
                plain = [[sys.executable, str(GROWTH / "plain.py"), url, study, sampler, "0", str(trials // workers)]] * workers
                theirs = np.mean([float(text.split()[0]) for text in together(plain, folder)])
                row(arm, length, ours, float(theirs), hydras_own(folder), first := first or ours)
        for sampler in ("random", "tpe"):
            arm = "memory" + (", TPE" if sampler == "tpe" else "")
            if re.fullmatch(only, arm):
                in_memory(Path(name) / arm, lengths, arm, sampler)


GROWTH = HERE / "growth"


def row(arm: str, length: int, ours: float, plain: float, hydra: float, first: float) -> None:
    """Print a row of `growth`."""
    print(
        f"{arm:24s}{length:6d} {ours:6.1f} {plain:7.1f} {hydra:6.1f} {ours / first:13.2f} {(ours - plain) / hydra:23.3f}",
        flush=True,
    )


def growing(folder: Path, url: str, study: str, sampler: str, workers: int, n_trials: int) -> tuple[float, list[list[float]]]:
    """Continue a study up to a number of trials; returns ms of CPU a trial, and the lines that `growth/app.py` noted."""
    (folder / "log.txt").unlink(missing_ok=True)
    command = [sys.executable, str(GROWTH / "app.py"), "-m", "x=interval(-5,5)", "n=interval(0,1)", "hydra/sweeper=optuna"]
    command += ["hydra.sweeper.check=null", f"hydra.sweeper.study_name={study}", f"hydra.sweeper.storage='{url}'"]
    command += [f"hydra/sweeper/sampler={sampler}", f"hydra.sweeper.n_jobs={workers}", f"hydra.sweeper.n_trials={n_trials}"]
    timed([*command, *(["hydra/launcher=pool"] if workers > 1 else [])], folder)
    lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return cost_of(lines), lines


def cost_of(lines: list[list[float]]) -> float:
    """CPU milliseconds a trial of the sweeper and its workers, but for each process's first trials."""
    by_process = [[line for line in lines if line[0] == process][2:] for process in {line[0] for line in lines}]
    spans = [(mine[-1][1] - mine[0][1], len(mine) - 1) for mine in by_process if len(mine) > 1]
    if not spans:
        return float("nan")
    cost = sum(used for used, _ in spans) / sum(count for _, count in spans)
    if len(by_process) > 1:  # the sweeper is none of them
        later = lines[2 * len(by_process) :]
        cost += (later[-1][2] - later[0][2]) / (len(later) - 1)
    return 1000 * cost


def hydras_own(folder: Path, jobs: int = 25) -> float:
    """CPU milliseconds a job of Hydra's own sweeper and launcher."""
    (folder / "log.txt").unlink(missing_ok=True)
    timed([sys.executable, str(GROWTH / "app.py"), "-m", "hydra/sweeper=basic", f"x=range(0,{jobs})", "hydra.sweep.dir=own"], folder)
    return cost_of([json.loads(line) for line in (folder / "log.txt").read_text().splitlines()])


def together(commands: list[list[str]], folder: Path) -> list[str]:
    """Run commands at the same time; returns what each printed."""
    running = [subprocess.Popen(command, cwd=folder, env=ENV, stdout=subprocess.PIPE, text=True) for command in commands]
    return [process.communicate()[0] for process in running]


def in_memory(folder: Path, lengths: list[int], arm: str, sampler: str) -> None:
    """Costs along one sweep in memory, which no other process can fill, and how the memory of its process grows, beside plain Optuna's."""
    window = 100
    folder.mkdir()
    _, lines = growing(folder, "memory://", "memory", sampler, 1, lengths[-1] + window)
    first = None
    for length in lengths:
        ours = cost_of(lines[length : length + window])
        plain = together([[sys.executable, str(GROWTH / "plain.py"), "memory://", "plain", sampler, str(length), str(window)]], folder)[0]
        row(arm, length, ours, float(plain.split()[0]), hydras_own(folder), first := first or ours)
    middle = lengths[-1] // 2
    ours = (lines[-1][3] - lines[middle][3]) / (len(lines) - middle) / 1e3
    plain = together([[sys.executable, str(GROWTH / "plain.py"), "memory://", "plain", sampler, str(middle), str(middle)]], folder)[0]
    print(f"memory of the process a trial, over the second half: {ours:.1f} kB, Optuna's {float(plain.split()[1]) / middle / 1e3:.1f} kB")


@contextlib.contextmanager
def database(folder: Path) -> Iterator[str | None]:
    """URL of a database on a PostgreSQL server of its own, None where none is installed; its fsync is off."""
    sys.path.append(str(REPOSITORY / "tests"))
    import databases

    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        print("PostgreSQL is not installed: its rows are left out")
        yield None
        return
    with databases.postgresql(folder, "speech") as port:
        yield f"postgresql+psycopg://speech@127.0.0.1:{port}/postgres"


def search(official: str, data: str, epochs: int, trials: int) -> None:
    """Wall time until the best WER of the official plugin's unpruned sweep is reached, two trials at a time in both."""
    shared = ["experiment=digit_strings", f"data.root={data}", f"trainer.epochs={epochs}", "backend.threads=1", "tracking=[]"]
    space = {"lr": "tag(log,interval(1e-4,1e-1))", "dropout": "interval(0,0.5)", "channels": "range(32,129,16)"}
    keys = {"lr": "optimizer.lr", "dropout": "model.dropout", "channels": "model.channels"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = [official, str(HERE / "official_sweeper" / "app.py"), "-m", f"train='{';'.join(shared)}'"]
        theirs += [f"{key}={values}" for key, values in space.items()]
        theirs += [f"hydra.sweeper.n_trials={trials}", "hydra.sweeper.sampler.seed=1"]
        theirs += ["hydra/launcher=joblib", "hydra.sweeper.n_jobs=2", "hydra.launcher.n_jobs=2"]
        start = time.time()
        trainer = folder / "trainer"  # the package alone: the official plugin without ours beside it
        trainer.mkdir()
        (trainer / "speechtrain").symlink_to(REPOSITORY / "speechtrain")
        wall, cpu, _ = timed(theirs, folder, PYTHONPATH=str(trainer))
        ends = [json.loads(line) for line in (folder / "finished.jsonl").read_text().splitlines()]
        best = min(ends, key=lambda item: item["value"])
        theirs_took = best["time"] - start
        print(f"official: WER {100 * best['value']:.2f} % after {best['time'] - start:.0f} s, {wall:.0f} s in all, {cpu:.0f} CPU-s")
        ours = [sys.executable, "-m", "speechtrain", "-m", *shared, *(f"{keys[key]}={values}" for key, values in space.items())]
        ours += [f"hydra.sweeper.n_trials={trials}", "hydra.sweeper.n_jobs=2", "hydra.sweeper.sampler.seed=1"]
        ours += ["hydra.sweeper.study_name=ours", "hydra.sweeper.report=val/loss"]
        ours += ["hydra/sweeper/pruner=asha", "hydra.sweeper.pruner.reduction_factor=2", "hydra.sweeper.sampler.n_startup_trials=4"]
        start = time.time()
        wall, cpu, _ = timed(ours, folder)
        done = ended(folder / "multirun" / "ours")
        print(f"ours:     WER {100 * min(value for _, value in done):.2f} %, {wall:.0f} s {cpu:.0f} CPU-s, {len(done)} trials not pruned")
        reached = min((when for when, value in done if value <= best["value"]), default=None)
        if reached is None:
            print("ours did not reach the official's best")
        else:
            print(f"ours reached it after {reached - start:.0f} s: {(reached - start) / theirs_took:.2f} of {theirs_took:.0f} s")


def ended(folder: Path) -> list[tuple[float, float]]:
    """(time, value) of each completed trial of a study's journal."""
    found = []
    for line in (folder / "study.journal").read_text().splitlines():
        entry = json.loads(line)
        if entry.get("op_code") == 6 and entry.get("state") == 1 and entry.get("values"):
            found.append((np.datetime64(entry["datetime_complete"]).astype("datetime64[us]").astype(float) / 1e6, entry["values"][0]))
    return found


def refill(workers: int, trials: int) -> None:
    """Wall time of a sweep of sleeping jobs beside total work / workers, and beside batches that wait for their slowest."""
    lengths = np.random.default_rng(0).lognormal(mean=0.5, sigma=1.0, size=trials).round(3).tolist()
    command = [sys.executable, str(TOY / "app.py"), "-m", f"x=range(2,{trials + 2})", f"lengths={json.dumps(lengths)}"]
    command += ["hydra.sweeper.check=null", "hydra.sweeper.study_name=refill", f"hydra.sweeper.n_jobs={workers}", "hydra/launcher=pool"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed([*command, "hydra.sweeper.own_values_first=false"], folder)
        lines = [line.split() for line in (folder / "log.txt").read_text().splitlines()]
    wall = max(float(line[3]) for line in lines) - min(float(line[3]) for line in lines)
    ideal = sum(lengths) / workers
    batches = sum(max(lengths[first : first + workers]) for first in range(0, trials, workers))
    print(f"{trials} trials, {sum(lengths):.0f} s of work, longest {max(lengths):.1f} s, {workers} workers: {wall:.1f} s")
    print(f"ideal {ideal:.1f} s: {wall / ideal:.2f}    batches that wait for their slowest {batches:.1f} s: {batches / ideal:.2f}")


def workers(count: int) -> None:
    """Seconds from the claim of a worker's first trial until it can train, CPU of its process and of the whole sweep, forked and cold.

    Each row also has the ratio to what `python -c "import torch"` costs at that moment.
    """
    quick = ["data=synthetic", "features=logmel_8k", "data.train_size=40", "data.val_size=8", "data.test_size=8", "model=tdnn"]
    quick += ["model.channels=16", "trainer.epochs=1", "tracking=[]", "report.enabled=false", "backend.threads=1"]
    command = [sys.executable, "-m", "speechtrain", "-m", *quick, f"seed=range(0,{count})", "hydra.sweeper.study_name=ready"]
    command += ["hydra/launcher=pool", "hydra.launcher.threads=1", f"hydra.sweeper.n_jobs={count}"]
    command += ["+hydra.callbacks.ready._target_=ready.Ready"]
    print("                        wall        x torch    CPU of its process   x torch", flush=True)
    for fork in (True, False):
        with tempfile.TemporaryDirectory() as name:
            torch_wall, torch_cpu, _ = timed([sys.executable, "-c", "import torch"], Path(name))
            path = os.pathsep.join([str(GROWTH), str(REPOSITORY)])
            ways = [f"hydra.launcher.fork={str(fork).lower()}", f"+hydra.callbacks.ready.file={name}/ready.txt"]
            wall, cpu, _ = timed([*command, *ways], Path(name), PYTHONPATH=path)
            lines = [json.loads(line) for line in (Path(name) / "ready.txt").read_text().splitlines()]
            begun = claimed(Path(name) / "multirun" / "ready")
        first = {line[1]: line for line in sorted(lines, key=lambda line: line[3], reverse=True)}
        for place, (number, _, used, at) in enumerate(sorted(first.values(), key=lambda line: begun[line[0]]), 1):
            took = at - begun[number]
            row_of = f"{'forked' if fork else 'cold'}, worker {place}"
            print(f"{row_of:20s} {took:7.2f} s {took / torch_wall:12.2f} {used:19.2f} s {used / torch_cpu:9.2f}", flush=True)
        print(f"the sweep: {wall:.1f} s, {cpu:.1f} CPU-s; import torch: {torch_wall:.2f} s, {torch_cpu:.2f} CPU-s", flush=True)


def claimed(folder: Path) -> dict[int, float]:
    """Time at which each trial of a study's journal was set running, by its number."""
    sys.path.insert(0, str(REPOSITORY))
    import optuna

    from speechtrain.sweep.study.storage import open_storage

    trials = optuna.load_study(study_name="ready", storage=open_storage(f"journal:///{folder / 'study.journal'}")).trials
    return {each.number: each.datetime_start.timestamp() for each in trials if each.datetime_start is not None}


def trial(data: str) -> None:
    """CPU of warm trials less training epochs and evaluation, with MLflow, in one worker."""
    program = f"""
import sys, time, importlib
acc = {{}}
def timed(owner, name):
    call = getattr(owner, name)
    def wrapped(*a, **k):
        start = time.process_time()
        try:
            return call(*a, **k)
        finally:
            acc['core'] = acc.get('core', 0.0) + time.process_time() - start
    setattr(owner, name, wrapped)
import speechtrain.__main__ as program, speechtrain.sweep.trial.runner as runner
training = importlib.import_module('speechtrain.train')
import lightning.pytorch.loops.fit_loop as loop
timed(training, 'evaluate'); timed(loop._FitLoop, 'advance')
run = runner.JobRunner.run
def watched(job_runner, job):
    acc.clear(); start = time.process_time()
    done = run(job_runner, job)
    print('FIXED', time.process_time() - start - acc['core'], file=sys.stderr, flush=True)
    return done
runner.JobRunner.run = watched
sys.argv = ['speechtrain', '-m', 'experiment=digit_strings', 'data.root={data}', 'trainer.epochs=2', 'backend.threads=1', 'seed=1,2,3,4,5']
program.main()
"""
    with tempfile.TemporaryDirectory() as name:
        done = subprocess.run([sys.executable, "-c", program], cwd=name, env=ENV, capture_output=True, text=True, check=True)
    costs = [float(text) for text in re.findall(r"FIXED ([\d.]+)", done.stderr)]
    print(f"first trial {costs[0]:.2f} CPU-s, others {', '.join(f'{cost:.2f}' for cost in costs[1:])}, median {np.median(costs[1:]):.2f}")


def main() -> None:
    """Choose by the first argument."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["toy", "growth", "search", "refill", "trial", "workers"])
    parser.add_argument("--official", help="Python of the environment with the official plugin")
    parser.add_argument("--data", help="folder of the digit strings")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--lengths", default="100,1000,10000", help="lengths of the studies of `growth`")
    parser.add_argument("--only", default=".*", help="pattern of the rows of `growth`, such as 'journal.*'")
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    if given.what == "toy":
        toy(given.official, given.trials or 1000)
    elif given.what == "growth":
        growth(given.trials or 100, [int(length) for length in given.lengths.split(",")], given.only)
    elif given.what == "search":
        search(given.official, given.data, given.epochs, given.trials or 30)
    elif given.what == "workers":
        workers(given.trials or 4)
    elif given.what == "refill":
        refill(4, given.trials or 60)
    else:
        trial(given.data)


if __name__ == "__main__":
    main()
