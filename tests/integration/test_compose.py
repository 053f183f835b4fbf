"""compose.yaml and the Dockerfile followed by hand: what would run in containers works together as processes of this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import containers
import databases
import optuna
import psycopg
import pytest
from conftest import TINY
from mlflow import MlflowClient

from speechtrain.tracking.run_folder import read_run_file
from speechtrain.training.history import HISTORY, read_history

pytestmark = pytest.mark.long

PASSWORD, SECRET_KEY = "of this test alone", "another one"
SHORT = [item for item in TINY if item != "tracking=[]"] + ["model=mlp", "trainer.epochs=1", "tracking.mlflow.log_model=false"]


class Machine:
    """Runs services of compose.yaml on this machine; hosts, ports and folders of the containers are replaced by ones that are free here."""

    def __init__(self, folder: Path) -> None:
        self.file = containers.compose({"POSTGRES_PASSWORD": PASSWORD, "S3_SECRET_KEY": SECRET_KEY})
        self.folder = folder
        self.mlflow, self.s3 = databases.free_port(), databases.free_port()
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(databases.programs()), os.environ["PATH"]]),
            "PGHOSTADDR": "127.0.0.1",  # where libpq finds any host that an address names
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        for mount in self.mounts():
            (folder / mount.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def mounts(self) -> set[str]:
        """The folders of the containers that volumes are mounted on."""
        volumes = [volume for service in self.file["services"].values() if "build" in service for volume in service["volumes"]]
        return {str(volume).partition(":")[2] for volume in volumes}

    def here(self, word: str) -> str:
        if word in self.mounts():
            return str(self.folder / word.lstrip("/"))
        word = word.replace("http://mlflow:5000", f"http://127.0.0.1:{self.mlflow}").replace("localhost:5000", f"localhost:{self.mlflow}")
        word = word.replace("http://s3:8333", f"http://127.0.0.1:{self.s3}")
        return str(self.mlflow) if word == "5000" else word

    def words(self, command: Sequence[str]) -> list[str]:
        return [shutil.which(command[0], path=self.environment["PATH"]) or command[0], *map(self.here, command[1:])]

    def environment_of(self, name: str) -> dict[str, str]:
        own = self.file["services"][name]["environment"]
        return {**self.environment, **{variable: self.here(str(value)) for variable, value in own.items()}}

    def run(self, name: str, *arguments: str) -> str:
        """What `docker compose run NAME ARGUMENTS` prints."""
        service = self.file["services"][name]
        command = [*service["entrypoint"], *(arguments or service["command"])]
        environment = {**self.environment_of(name), "SPEECHTRAIN_CACHE": str(self.folder / "cache")}
        done = subprocess.run(
            self.words(command), cwd=self.folder / "work", env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def is_healthy(self, name: str) -> bool:
        """Whether a service's health check passes before its retries are used up."""
        check = self.file["services"][name]["healthcheck"]
        kind, *command = check["test"]
        assert kind == "CMD"
        for _ in range(10 * int(check["retries"])):
            if subprocess.run(self.words(command), env=self.environment_of(name), capture_output=True, check=False).returncode == 0:
                return True
            time.sleep(float(check["interval"].removesuffix("s")) / 10)
        return False

    @contextmanager
    def database(self) -> Iterator[None]:
        """The server as the image of PostgreSQL prepares it: user, database and the scripts that are mounted for it."""
        service = self.file["services"]["database"]
        settings = service["environment"]
        with databases.postgresql(self.folder, settings["POSTGRES_USER"], settings["POSTGRES_PASSWORD"]) as port:
            self.environment["PGPORT"] = str(port)
            with self.connection("postgres") as connection:
                connection.execute(f"create database {settings['POSTGRES_DB']}")
            scripts = [config for config in service["configs"] if config["target"].startswith("/docker-entrypoint-initdb.d/")]
            for script in scripts:
                with self.connection(settings["POSTGRES_DB"]) as connection:
                    connection.execute(self.file["configs"][script["source"]]["content"])
            yield

    @contextmanager
    def objects(self) -> Iterator[Any]:
        """A server of S3 in place of the image's, with the bucket that its command names; yields a client."""
        import boto3
        from moto.server import ThreadedMotoServer

        service = self.file["services"]["s3"]
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.s3, verbose=False)
        server.start()
        try:
            keys = [service["environment"][f"AWS_{kind}"] for kind in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")]
            client = boto3.client("s3", "us-east-1", None, True, None, f"http://127.0.0.1:{self.s3}", *keys)
            (bucket,) = (word.partition("=")[2] for word in service["command"] if word.startswith("-bucket="))
            client.create_bucket(Bucket=bucket)
            yield client
        finally:
            server.stop()

    def connection(self, database: str) -> psycopg.Connection[Any]:
        settings = self.file["services"]["database"]["environment"]
        user, password = settings["POSTGRES_USER"], settings["POSTGRES_PASSWORD"]
        return psycopg.connect(
            host="127.0.0.1", port=self.environment["PGPORT"], user=user, password=password, dbname=database, autocommit=True
        )

    @contextmanager
    def service(self, name: str) -> Iterator[None]:
        """A service that goes on until the block ends."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self.words(self.file["services"][name]["command"]),
                cwd=self.folder / "work",
                env=self.environment_of(name),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # as a container that stops, with all that it started
            process.wait(60)


@pytest.mark.slow  # test_storages.py has sweeps on PostgreSQL, test_tracking_faults.py runs on a server, test_containers.py the file itself
def test_services_train_and_sweep_against_a_tracking_server_and_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path)
    with ExitStack() as up:
        up.enter_context(machine.database())
        assert machine.is_healthy("database")
        objects = up.enter_context(machine.objects())
        up.enter_context(machine.service("mlflow"))
        assert machine.is_healthy("mlflow"), (tmp_path / "mlflow.log").read_text()
        address = f"http://127.0.0.1:{machine.mlflow}/ajax-api/2.0/mlflow/experiments/search?max_results=1"
        by_name = Request(address, headers={"Host": "mlflow:5000"})
        assert urlopen(by_name).status == 200, "jobs call the server by its name among the services"

        machine.run("train", *SHORT)
        printed = machine.run("sweep", *SHORT, "optimizer.lr=0.003,0.01", "hydra.sweeper.study_name=lr")

        client = MlflowClient(f"http://127.0.0.1:{machine.mlflow}")
        experiment = client.get_experiment_by_name("speechtrain")
        runs = client.search_runs([experiment.experiment_id])
        assert [run.info.status for run in runs] == ["FINISHED"] * 4  # the run, the sweep, its two trials
        alone = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags and "checkpoints" in artifacts_of(client, run))
        assert experiment.artifact_location.startswith("mlflow-artifacts:"), "what jobs keep goes through the server"
        kept = {item["Key"] for item in objects.list_objects_v2(Bucket="mlflow", Prefix=f"{alone.info.experiment_id}/")["Contents"]}
        assert f"{alone.info.experiment_id}/{alone.info.run_id}/artifacts/config.yaml" in kept
        assert not list((tmp_path / "artifacts").iterdir())

        for name, value in machine.environment_of("sweep").items():
            if name.startswith("PG"):
                monkeypatch.setenv(name, value)
        storage = next(word for word in machine.file["services"]["sweep"]["entrypoint"] if "storage=" in word).partition("storage=")[2]
        study = optuna.load_study(study_name="lr", storage=storage)
        assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
        assert "lr" in printed
        tables = "select table_name from information_schema.tables where table_schema = 'public'"
        with machine.connection("mlflow") as of_mlflow, machine.connection("optuna") as of_optuna:
            both = {row[0] for row in of_mlflow.execute(tables)} & {row[0] for row in of_optuna.execute(tables)}
        assert "alembic_version" in both, "one database would do"


@pytest.mark.slow  # test_resume_elsewhere.py has artifacts in a folder
def test_a_run_whose_folder_is_gone_is_resumed_from_what_the_server_has_on_s3(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    words = [*SHORT, "scheduler=constant", "tracking.mlflow.log_last=true"]
    with ExitStack() as up:
        up.enter_context(machine.database())
        objects = up.enter_context(machine.objects())
        up.enter_context(machine.service("mlflow"))
        assert machine.is_healthy("mlflow"), (tmp_path / "mlflow.log").read_text()
        machine.run("train", *words, "hydra.run.dir=whole", "trainer.epochs=2")
        machine.run("train", *words, "hydra.run.dir=begun")
        run_id = read_run_file(tmp_path / "work" / "begun")["mlflow_run_id"]
        shutil.rmtree(tmp_path / "work" / "begun")

        printed = machine.run("train", f"resume={run_id}", "trainer.epochs=2")

        assert f"fetched     run {run_id}" in printed
        client = MlflowClient(f"http://127.0.0.1:{machine.mlflow}")
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        whole, resumed = (read_history(tmp_path / "work" / place / HISTORY) for place in ("whole", f"outputs/{run_id}"))
        assert [epoch["train/loss"] for epoch in resumed] == [epoch["train/loss"] for epoch in whole]
        assert [item.value for item in client.get_metric_history(run_id, "train/loss")] == [epoch["train/loss"] for epoch in whole]
        place = f"{run.info.experiment_id}/{run_id}/artifacts/resume/"
        kept = {
            item["Key"].removeprefix(place): item["Size"] for item in objects.list_objects_v2(Bucket="mlflow", Prefix=place)["Contents"]
        }
        listed = json.loads(objects.get_object(Bucket="mlflow", Key=f"{place}files.json")["Body"].read())["files"]
        assert len(kept) == 1 + len({each["sha256"] for each in listed}), "what an earlier checkpoint needed is deleted"


def artifacts_of(client: MlflowClient, run: Any) -> set[str]:
    return {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


def test_the_serving_image_answers_and_says_that_it_is_healthy(tmp_path: Path, trained: Path, spoken: dict[str, str]) -> None:
    stage = containers.stages()["serve"]
    export = [sys.executable, "-m", "speechtrain.export", f"from={trained}", f"out={tmp_path}"]
    subprocess.run(export, cwd=trained.parent, check=True, capture_output=True)
    (model,) = tmp_path.glob("*.zip")
    port = databases.free_port()
    command = [word.replace("/models/model.zip", str(model)) for word in stage.command]
    check = [word.replace(":8080", f":{port}") for word in stage.health_check]

    server = subprocess.Popen([sys.executable, *command[1:], f"port={port}"], stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            if healthy := subprocess.run([sys.executable, *check[1:]], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        assert healthy
        path, text = next(iter(spoken.items()))
        with urlopen(f"http://127.0.0.1:{port}/transcribe", data=Path(path).read_bytes()) as answer:
            assert json.load(answer)["text"] == text
    finally:
        server.terminate()
        server.wait(20)
