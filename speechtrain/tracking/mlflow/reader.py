"""Reads runs, their files and models back from MLflow."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from speechtrain.addresses import masked
from speechtrain.errors import ConfigError, Problem, UserError, first_line
from speechtrain.tracking.mlflow.client import open_client, status_of
from speechtrain.tracking.mlflow.location import variables_kept
from speechtrain.tracking.mlflow.lookup import choose_run, no_study, stored_id
from speechtrain.tracking.mlflow.names import name_of_metric


@dataclass(frozen=True)
class Record:
    """What MLflow knows of one run.

    Attributes:
        params: the config, with dotted keys.
        metrics: the last value of each metric.
        tags: among them git commit, versions and fingerprints of the data.
        seconds: from start to end; None while it has not ended.
    """

    id: str
    name: str
    status: str
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def is_sweep(self) -> bool:
        """Return whether it is the run of a sweep, in which its trials are nested."""
        return self.tags.get("speechtrain.kind") == "sweep"


class NoAnswerError(UserError):
    """A server or a database does not answer now, which may pass."""


class Reader:
    """Reads runs from one server or database; `lookup.open_reader` makes one.

    Args:
        uri: the server, or a database that exists.
        experiment: the experiment in which names and tags are looked for.
        key: the key of the config that `uri` comes from, for messages.

    Raises:
        NoAnswerError: the server cannot be reached.
    """

    def __init__(self, uri: str, experiment: str, *, key: str = "tracking_uri") -> None:
        self.uri = uri
        self._address = masked(uri)
        self.experiment = experiment
        try:
            self._client = open_client(self.uri)
            found_experiment = self._client.get_experiment_by_name(experiment)
        except Exception as error:
            raise NoAnswerError(f"MLflow cannot be reached at {self._address}: {first_line(error)}\n    -> set {key}") from error
        self._experiment_id = found_experiment.experiment_id if found_experiment is not None else None

    def run(self, name: str, *, key: str = "runs") -> Record:
        """Return a run by its id or the first letters of it, its folder, `last`, or its name where only one run has it.

        Raises:
            ConfigError: there is none, or several.
            NoAnswerError: the server fails.
        """
        wanted = stored_id(name, key)
        try:
            return _record(self._client.get_run(wanted))
        except MlflowException as error:
            if status_of(error) >= 500:
                raise self._no_answer(error) from error
            runs = {run.id: run for run in self._search("")}
        return runs[choose_run(wanted, {run.id: run.name for run in runs.values()}, self.experiment, self.uri, key)]

    def trials(self, study: str) -> list[Record]:
        """Return the runs of a study's trials, in the order of their numbers.

        Raises:
            ConfigError: there is no such study.
        """
        runs = [run for run in self._search(f"tags.`speechtrain.study` = '{_quoted(study)}'") if not run.is_sweep]
        if not runs:
            raise no_study(study, {run.tags["speechtrain.study"] for run in self._search("") if "speechtrain.study" in run.tags}, self.uri)
        return sorted(runs, key=lambda run: int(run.tags.get("speechtrain.trial", 0)))

    def tagged(self, tags: Mapping[str, str]) -> list[Record]:
        """Return the runs that have all these tags.

        Raises:
            ConfigError: there are none.
        """
        query = " and ".join(f"tags.`{key}` = '{_quoted(str(value))}'" for key, value in tags.items())
        runs = [run for run in self._search(query) if not run.is_sweep]
        if not runs:
            raise ConfigError([Problem("tags", f"no run has {dict(tags)}", "look at the tags of a run in the MLflow UI")])
        return runs[::-1]

    def _search(self, query: str) -> list[Record]:
        if self._experiment_id is None:
            return []
        runs: list[Record] = []
        token = None
        while True:
            try:
                page = self._client.search_runs([self._experiment_id], query, max_results=1000, page_token=token)
            except MlflowException as error:
                raise self._no_answer(error) from error
            runs += [_record(run) for run in page]
            token = page.token
            if not token:
                return runs

    def _no_answer(self, error: Exception) -> NoAnswerError:
        return NoAnswerError(f"{self._address} cannot be searched ({first_line(error)})\n    -> look at it in the MLflow UI")

    def history(self, run: Record, metric: str) -> list[tuple[int, float]]:
        """Return all (step, value) of a metric, in the order of the steps."""
        if metric not in run.metrics:
            return []
        return sorted((int(item.step), float(item.value)) for item in self._client.get_metric_history(run.id, metric))

    def download(self, uri: str) -> Path:
        """Download a model or an artifact by its URI, to a folder that is removed when the process ends.

        Raises:
            ConfigError: there is none.
        """
        folder = Path(tempfile.mkdtemp(prefix="speechtrain-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        try:
            if uri.startswith("runs:/"):
                run_id, _, name = uri.removeprefix("runs:/").partition("/")
                run = self._client.get_run(run_id)
                models = self._client.search_logged_models([run.info.experiment_id], f"source_run_id = '{_quoted(run_id)}'")
                named = [model for model in models if model.name == name]
                if not named:
                    return Path(self._client.download_artifacts(run_id, name, str(folder)))
                uri = f"models:/{named[0].model_id}"
            with variables_kept():
                mlflow.set_tracking_uri(self.uri)
                return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
        except Exception as error:  # stores of artifacts have errors of their own libraries
            message = f"there is no {uri} in {self._address} ({first_line(error)})"
            raise ConfigError([Problem("from", message, "look at the MLflow UI, or set tracking_uri")]) from error

    def text(self, run: Record, name: str) -> str | None:
        """Return a text among a run's artifacts, or None if there is none."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                return Path(self._client.download_artifacts(run.id, name, folder)).read_text(encoding="utf-8")
        except Exception:  # stores of artifacts have errors of their own libraries
            return None

    def transcripts(self, run: Record) -> dict[str, tuple[str, str]]:
        """Return (reference, hypothesis) of each utterance that the run was tested on, by id; empty if it kept none."""
        content = self.text(run, "transcripts.json")
        if content is None:
            return {}
        try:
            table = json.loads(content)
            columns: Sequence[str] = table["columns"]
            place = [columns.index(name) for name in ("id", "reference", "hypothesis")]
            return {str(row[place[0]]): (str(row[place[1]] or ""), str(row[place[2]] or "")) for row in table["data"]}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            message = f"transcripts.json of run {run.id} in {self._address} is no table of transcripts ({first_line(error)})"
            raise UserError(f"{message}\n    -> evaluate the run again, or leave it out") from error


def _record(run: Run) -> Record:
    info = run.info
    timed = isinstance(info.end_time, int) and isinstance(info.start_time, int)
    seconds = (info.end_time - info.start_time) / 1000 if timed else None
    kept = {name: value for name, value in run.data.metrics.items() if isinstance(value, (int, float))}
    moved_last = sorted(kept, key=lambda name: name_of_metric(name) != name)  # of a run that an older version began and this one resumed
    metrics = {name_of_metric(name): kept[name] for name in moved_last}
    return Record(info.run_id, info.run_name or "", info.status, run.data.params, metrics, run.data.tags, seconds)


def _quoted(value: str) -> str:
    return value.replace("'", "")
