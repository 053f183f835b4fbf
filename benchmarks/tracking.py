"""What tracking costs a training: seconds that its loop waits an epoch, beside Lightning's MLFlowLogger and MLflow's autolog.

    python benchmarks/tracking.py wait --processes 8     # all writing to one fresh SQLite database at once
    python benchmarks/tracking.py run --rounds 2         # the default run with and without MLflow, one after the other

Each process trains a trivial model with Lightning, 16 metrics an epoch, and is measured from the end of an epoch to the start of the next
with what the logger adds there. One thread each. CPU seconds are those of the training's own process; what a process beside it spends is
given apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METRICS = 16
KINDS = ("nothing", "speechtrain", "MLFlowLogger", "autolog")


def one_process(kind: str, folder: Path, epochs: int, work: float) -> None:
    """Train in this process; prints the waits as JSON."""
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    waits: list[float] = []
    cpu: list[float] = []

    class Trivial(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, _index: int) -> torch.Tensor:
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

        def on_train_epoch_start(self) -> None:
            if waits or self.current_epoch:
                waits.append(time.perf_counter() - self.ended)
                cpu.append(time.process_time() - self.cpu_ended)
            time.sleep(work)

        def on_train_epoch_end(self) -> None:
            self.ended, self.cpu_ended = time.perf_counter(), time.process_time()
            values = {f"val/metric_{index}": 1.0 / (self.current_epoch + 1) for index in range(METRICS)}
            if kind == "speechtrain":
                tracker.log_metrics(values, self.current_epoch)
            elif kind in ("MLFlowLogger", "autolog"):
                self.log_dict(values)

    logger: Any = False
    if kind == "speechtrain":
        from speechtrain.tracking.base import RunInfo
        from speechtrain.tracking.mlflow.tracker import MlflowTracker

        run = folder / f"run-{os.getpid()}"
        run.mkdir()
        tracker = MlflowTracker(uri, "bench", system_metrics=None)
        tracker.start(RunInfo("run", run, {}))
        tracker.opened()
    elif kind == "MLFlowLogger":
        from lightning.pytorch.loggers import MLFlowLogger

        logger = MLFlowLogger("bench", tracking_uri=uri)
    elif kind == "autolog":
        import mlflow

        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("bench")
        mlflow.pytorch.autolog(log_models=False, checkpoint=False)
    (folder / f"ready-{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    data = DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=8)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", logger=logger, **quiet)
    trainer.fit(Trivial(), data)
    started = time.perf_counter()
    if kind == "speechtrain":
        tracker.finish("FINISHED")
    print(json.dumps({"waits": waits, "cpu": cpu, "finish": time.perf_counter() - started}))


def wait(arguments: argparse.Namespace) -> None:
    """Several processes at once, for each kind of logger."""
    print(f"{arguments.processes} processes, {arguments.epochs} epochs of {arguments.work} s, {METRICS} metrics; ms an epoch")
    print(f"{'':14}{'mean':>9}{'median':>9}{'95 %':>9}{'worst':>9}{'CPU':>9}{'last wait':>12}")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare = "from speechtrain.tracking.mlflow.sender import open_client, experiment_id; import sys; "
            prepare += "experiment_id(open_client(sys.argv[1]), sys.argv[1], 'bench')"
            subprocess.run([sys.executable, "-c", prepare, f"sqlite:///{folder / 'mlflow.db'}"], check=True, capture_output=True)
            command = [sys.executable, __file__, "one", "--kind", kind, "--folder", name, "--epochs", str(arguments.epochs)]
            command += ["--work", str(arguments.work)]
            env = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
            with (folder / "errors").open("w") as errors:
                workers = [
                    subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env) for _ in range(arguments.processes)
                ]
                while len(list(folder.glob("ready-*"))) < arguments.processes:
                    if any(worker.poll() for worker in workers):
                        sys.exit((folder / "errors").read_text()[-2000:])
                    time.sleep(0.05)
                (folder / "go").touch()
                found = [json.loads(worker.communicate()[0].splitlines()[-1]) for worker in workers]
        waits = sorted(1000 * value for each in found for value in each["waits"])
        cpu = [1000 * value for each in found for value in each["cpu"]]
        finish = max(each["finish"] for each in found)
        p95 = waits[int(0.95 * (len(waits) - 1))]
        row = (statistics.fmean(waits), statistics.median(waits), p95, waits[-1], statistics.fmean(cpu))
        print(f"{kind:14}" + "".join(f"{value:9.2f}" for value in row) + f"{finish:10.2f} s")


def run(arguments: argparse.Namespace) -> None:
    """The default run with and without MLflow."""
    seconds: dict[str, list[float]] = {"[]": [], "[mlflow]": []}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(arguments.rounds):
            for tracking, times in seconds.items():
                started = time.perf_counter()
                command = [sys.executable, "-m", "speechtrain", f"tracking={tracking}", "backend.threads=1", *arguments.overrides]
                subprocess.run(command, cwd=name, check=True, capture_output=True)
                times.append(time.perf_counter() - started)
                print(f"tracking={tracking:10} {times[-1]:.1f} s", flush=True)
    without, with_it = (statistics.fmean(times) for times in seconds.values())
    print(f"without {without:.1f} s, with {with_it:.1f} s: {100 * (with_it / without - 1):+.2f} %")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("wait", "run", "one"))
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--work", type=float, default=0.5, help="seconds that an epoch takes")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    if arguments.what == "one":
        one_process(arguments.kind, arguments.folder, arguments.epochs, arguments.work)
    else:
        {"wait": wait, "run": run}[arguments.what](arguments)


if __name__ == "__main__":
    main()
