"""Runs single trainings on another machine over ssh: the project is copied there, runs go on detached, results are copied back.

Everything goes through the user's own `ssh` and `rsync`. The folder of a run on that machine follows from its sweep and its command line,
so the same command finds it again: running, ended, or dead with a checkpoint to resume from.
"""

from __future__ import annotations

import hashlib
import logging
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from speechtrain.backends.checkpoint_files import FOLDER, LAST, SUFFIXES
from speechtrain.config.overrides import override_text, parser
from speechtrain.config.schemas.sweeps import SshOptions
from speechtrain.console import console
from speechtrain.errors import RunError, UserError
from speechtrain.sweep.study.folder import token_of
from speechtrain.sweep.trial.outcome import VARIABLE
from speechtrain.tracking.mlflow.location import experiment_name, local_uri, named_address, place_of_run, tracking_address
from speechtrain.tracking.run_folder import note_places, read_run_file, write_run_file

if TYPE_CHECKING:
    from speechtrain.sweep.trial.context import TrialContext

log = logging.getLogger(__name__)

_NO_CONNECTION = 255
"""Exit code with which ssh itself fails."""


class Remote:
    """Runs commands on one machine and copies folders to and from it, through ssh and rsync."""

    def __init__(self, options: SshOptions) -> None:
        self.options = options
        self._ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", *options.ssh_options]

    def call(self, command: str, *, patience: float = 0.0) -> str:
        """Run a shell command on the machine and return its output; without a connection, try again for `patience` seconds.

        Raises:
            UserError: there is no connection, or the command fails.
        """
        until = time.monotonic() + patience
        while True:
            done = subprocess.run([*self._ssh, self.options.host, command], capture_output=True, text=True, errors="replace", check=False)
            if done.returncode == 0:
                return done.stdout
            reason = (done.stderr.strip() or done.stdout.strip() or f"code {done.returncode}").splitlines()[-1]
            if done.returncode != _NO_CONNECTION:
                raise UserError(f"{self.options.host}: `{command[:200]}` failed: {reason}\n    -> try it with ssh {self.options.host}")
            if time.monotonic() > until:
                raise UserError(
                    f"{self.options.host} cannot be reached: {reason}\n"
                    f"    -> `ssh {self.options.host}` must work without a password; look at hydra.launcher.host and ~/.ssh/config"
                )
            time.sleep(min(self.options.poll, 5.0))

    def push(self, source: Path, target: str) -> None:
        """Copy a folder to the machine, and delete there what does not exist here any more."""
        excluded = [f"--exclude={pattern}" for pattern in self.options.exclude]
        self._rsync([*excluded, "--delete", f"{source}/", f"{self.options.host}:{target}/"])

    def pull(self, source: str, target: Path) -> None:
        """Copy a folder from the machine."""
        target.mkdir(parents=True, exist_ok=True)
        self._rsync([f"{self.options.host}:{source}/", f"{target}/"])

    def _rsync(self, arguments: Sequence[str]) -> None:
        command = ["rsync", "-az", "-e", shlex.join(self._ssh), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except FileNotFoundError:
            raise UserError("rsync is not installed here\n    -> install it, for example apt install rsync") from None
        if done.returncode != 0:
            reason = (done.stderr.strip() or "no message").splitlines()[0]
            raise UserError(f"rsync with {self.options.host} failed: {reason}\n    -> rsync must be installed on both machines")


class RemoteRuns:
    """Runs the jobs of one sweep on one machine.

    Args:
        options: `hydra.launcher`.
        config: config of the sweep.
    """

    def __init__(self, options: SshOptions, config: DictConfig) -> None:
        self.options = options
        self.config = config
        self.remote = Remote(options)
        self._ready = False

    def run(self, overrides: Sequence[str], number: int) -> JobReturn:
        """Start a run on the machine, or attach to it if it is there, wait for its end and copy its folder to `<sweep>/<number>`.

        Raises:
            UserError: the machine cannot be used.
        """
        own = [item for item in overrides if not item.startswith(("hydra.", "+hydra.", "++hydra."))]
        local = Path(str(self.config.hydra.sweep.dir)) / str(number)
        local.mkdir(parents=True, exist_ok=True)
        self._prepare()
        key = hashlib.sha256("\n".join([token_of(local.parent), *own]).encode()).hexdigest()[:12]
        folder = f"{self._root}/runs/{key}"
        self._start(own, folder)
        code = self._wait_for_end(folder, local / "output.log")
        self.remote.pull(folder, local)
        self._import_tracking(local, _trial_of(overrides))
        returned = JobReturn(overrides=own)
        if code == 0:
            returned.status = JobStatus.COMPLETED
            returned.return_value = read_run_file(local).get("objective")
        else:
            lines = (local / "output.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            returned.status = JobStatus.FAILED
            how = f": {lines[-1]}" if lines else " and no output"
            message = f"the run on {self.options.host} exited with code {code}{how}\n    -> see {local / 'output.log'}"
            returned.return_value = RunError(message)
            self.remote.call(f"rm -f {shlex.quote(folder)}/rc")  # the next attempt resumes from its checkpoint
        return returned

    def _prepare(self) -> None:
        """Copy the project to the machine, and set it up if its dependencies have changed."""
        if self._ready:
            return
        options = self.options
        home = self.remote.call("pwd").strip()
        self._root = options.folder if options.folder.startswith("/") else f"{home}/{options.folder}"
        self._project = f"{self._root}/project"
        source = Path(options.project) if options.project else Path(__file__).resolve().parents[3]
        if not (source / "pyproject.toml").is_file():
            raise UserError(f"{source} holds no pyproject.toml\n    -> set hydra.launcher.project to a checkout of the project")
        self.remote.call(f"mkdir -p {shlex.quote(self._project)} {shlex.quote(self._root)}/runs")
        self.remote.push(source, self._project)
        requirements = b"".join(
            (source / name).read_bytes() for name in ("pyproject.toml", "requirements.lock") if (source / name).is_file()
        )
        digest = hashlib.sha256(requirements + options.setup.encode()).hexdigest()
        marker = f"{self._root}/setup"
        if self.remote.call(f"cat {shlex.quote(marker)} 2>/dev/null || true").strip() != digest:
            console.print(f"setting the project up on {options.host} (once)", markup=False)
            self.remote.call(f"cd {shlex.quote(self._project)} && {{ {options.setup}; }} && echo {digest} > {shlex.quote(marker)}")
        self._ready = True

    def _start(self, overrides: Sequence[str], folder: str) -> None:
        """Start the run, unless it runs or has ended; one that died is resumed from its checkpoint."""
        named = any(item.startswith(("tracking", "~tracking")) for item in overrides)
        tracking = [] if named else [f"{_URI}={override_text(local_uri(Path(folder)))}"]
        arguments = [*overrides, *tracking, f"hydra.run.dir={folder}"]
        python = self.options.python if self.options.python.startswith("/") else f"{self._project}/{self.options.python}"
        quoted, command = shlex.quote(folder), shlex.join([python, "-m", "speechtrain", *arguments])
        resumed = shlex.join([python, "-m", "speechtrain", f"resume={folder}", "trust=true"])  # its own folder
        has_checkpoint = " || ".join(f"[ -f {FOLDER}/{LAST}{suffix} ]" for suffix in SUFFIXES)
        script = (
            f"cd {shlex.quote(self._project)}; mkdir -p {quoted}; cd {quoted}\n"
            "if [ -f rc ]; then exit 0; fi\n"
            'if [ -f pid ] && kill -0 "$(cat pid)" 2>/dev/null; then exit 0; fi\n'
            f"if {has_checkpoint}; then run={shlex.quote(resumed)}; else run={shlex.quote(command)}; fi\n"
            f"PYTHONPATH={shlex.quote(self._project)} setsid nohup sh -c "
            '"$run; echo \\$? > rc.tmp; mv rc.tmp rc" >> output.log 2>&1 < /dev/null &\n'
            "echo $! > pid\n"
        )
        self.remote.call(script, patience=self.options.patience)

    def _wait_for_end(self, folder: str, log_file: Path) -> int:
        """Copy the run's output until it ends, waiting while there is no connection, and return its exit code."""
        quoted = shlex.quote(folder)
        offset = 0
        log_file.write_bytes(b"")
        while True:
            ask = f"cd {quoted}; if [ -f rc ]; then cat rc; elif kill -0 $(cat pid) 2>/dev/null; then echo -; else echo dead; fi"
            state, _, text = self.remote.call(f"{ask}; tail -c +{offset + 1} output.log", patience=self.options.patience).partition("\n")
            if text:
                with log_file.open("ab") as file:
                    file.write(text.encode())
                offset += len(text.encode())
            if state not in ("-", "dead"):
                return int(state)
            if state == "dead":
                return 137
            time.sleep(self.options.poll)

    def _import_tracking(self, local: Path, trial: TrialContext | None) -> None:
        """Import the run into this machine's MLflow, under its sweep."""
        database = local / "mlflow.db"
        run_id = read_run_file(local).get("mlflow_run_id")
        target = self.config.get("tracking", {}).get("mlflow")
        if not database.is_file() or run_id is None or target is None:
            return
        from speechtrain.tracking.mlflow.copies import import_run
        from speechtrain.tracking.mlflow.tracker import PARENT

        uri = tracking_address(target.get("tracking_uri"))
        imported_before = read_run_file(local.parent / "imported").get(str(run_id))
        tags = trial.tags | ({PARENT: trial.parents["mlflow"]} if "mlflow" in trial.parents else {}) if trial is not None else {}
        imported = import_run(
            database,
            str(run_id),
            uri,
            experiment_name(target.get("experiment")),
            earlier_copy=imported_before,
            tags=tags,
            name=trial.name if trial is not None else "",
        )
        (local.parent / "imported").mkdir(exist_ok=True)
        write_run_file(local.parent / "imported", {str(run_id): imported})
        write_run_file(local, {"mlflow_run_id": imported, "run_ids": {"mlflow": imported}})
        place = place_of_run(named_address(target.get("tracking_uri")), experiment_name(target.get("experiment")))
        note_places(local, {"mlflow": place})


def _trial_of(overrides: Sequence[str]) -> TrialContext | None:
    """Return the trial that a job belongs to, of which the other machine knows nothing."""
    from speechtrain.sweep.trial.context import TrialContext

    for item in map(parser.parse_override, overrides):
        if item.key_or_group == f"hydra.job.env_set.{VARIABLE}":
            return TrialContext.from_text(str(item.value()))
    return None


_URI = "tracking.mlflow.tracking_uri"
