"""What of `hydra/launcher=ray` needs no cluster: its keys, whether nodes have what a trial asks for, addresses, and a worker by itself."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.types import HydraContext, RunMode

from hydra_plugins.speechtrain_sweeper import SweeperOptions
from speechtrain.config import extras
from speechtrain.config.node_checks import find_node_problems
from speechtrain.config.schemas.sweeps import PoolOptions, bytes_of
from speechtrain.errors import UserError
from speechtrain.sweep.plugin import _give_types, ray_options
from speechtrain.sweep.space.compose import Composer
from speechtrain.sweep.study.folder import token_of
from speechtrain.sweep.trial.outcome import SweepJob
from speechtrain.sweep.trial.runner import Program
from speechtrain.sweep.workers import ray_cluster
from speechtrain.sweep.workers.messages import Setup
from speechtrain.sweep.workers.ray_cluster import Cluster, Node, asked_of, room_for, unmet
from speechtrain.sweep.workers.ray_worker import RayWorker, WorkerSetup

needs_ray = pytest.mark.skipif(not extras.is_installed("ray"), reason="needs ray: pip install 'speechtrain[ray]'")


def place_of(cfg: Any) -> str:
    return f"{Path.cwd()} {os.environ.get('MLFLOW_TRACKING_URI')} {cfg.x}"


@contextmanager
def sweep(folder: Path, *overrides: str) -> Iterator[Program]:
    """A program that is not speechtrain, with this launcher."""
    (folder / "conf").mkdir(exist_ok=True)
    (folder / "conf" / "config.yaml").write_text("defaults: [_self_, {override hydra/launcher: ray}]\nx: 1\n")
    with initialize_config_dir(str(folder / "conf"), version_base="1.3", job_name="places"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
        _give_types(config)
        yield Program(HydraContext(loader, Callbacks()), config, place_of)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("address=localhost", "address: names no cluster, received 'localhost'\n    -> write auto, HOST:PORT, ray://HOST:10001"),
        ("num_cpus=-1", "num_cpus: must be at least 0, received -1"),
        ("num_gpus=1.5", "num_gpus: is above 1 and no whole number, received 1.5"),
        ("memory=much", "memory: is no amount of memory, received 'much'\n    -> write a number of bytes, or one with MB or GB: 4GB"),
        ("resources={CPU: 2}", "resources.CPU: has a key of its own\n    -> set hydra.launcher.num_cpus"),
        ("resources={licence: 0}", "resources.licence: must be a number above 0, received 0"),
        ("runtime_env=here", "runtime_env: must be a mapping, received 'here'\n    -> for example '{working_dir: ."),
        ("runtime_env={working_dir: nowhere}", "runtime_env.working_dir: there is no nowhere\n    -> name a folder of this machine"),
        ("init={address: auto}", "init.address: has a key of its own\n    -> set hydra.launcher.address"),
    ],
)
@needs_ray
def test_a_value_that_ray_would_not_take_is_told_by_its_key(tmp_path: Path, override: str, said: str) -> None:
    with sweep(tmp_path, f"hydra.launcher.{override}") as program:
        (problem,) = find_node_problems(program.config.hydra.launcher, "hydra.launcher")

    assert f"hydra.launcher.{said}" in str(problem).strip().replace("\n      ", "\n    ")


@pytest.mark.parametrize(
    ("written", "size"),
    [(4_000_000_000, 4e9), ("4GB", 4e9), ("1.5 GiB", 1.5 * 2**30), ("512mb", 512e6), ("0", None), (True, None), ("4 XB", None)],
)
def test_memory_is_a_number_of_bytes_or_has_a_unit(written: object, size: float | None) -> None:
    assert bytes_of(written) == size


def test_without_ray_it_is_said_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda name: name != "ray")
    with sweep(tmp_path) as program:
        (problem,) = find_node_problems(program.config.hydra.launcher, "hydra.launcher")
        assert "hydra.launcher: needs ray, which is not installed" in str(problem)
        with pytest.raises(UserError, match=r"pip install 'speechtrain\[ray\]'"):
            Cluster(ray_options(program.config))


NODES = [
    Node("a", "small", {"CPU": 4.0, "memory": 8e9, "object_store_memory": 1e9, "node:10.0.0.1": 1.0}),
    Node("b", "large", {"CPU": 16.0, "GPU": 2.0, "memory": 64e9}),
]


def test_what_no_node_has_is_told_by_its_key_with_what_there_is() -> None:
    assert unmet({"CPU": 16.0, "GPU": 0.5}, NODES) is None
    assert str(unmet({"CPU": 32.0, "GPU": 1.0}, NODES)).splitlines() == [
        "1 problem in the config:",
        "  hydra.launcher.num_cpus: a trial asks for 32 CPUs, and no node has more than 16 CPUs",
        "    -> ask for less, or start a node that has it. The cluster has:",
        "    small: 4 CPUs, 8.0 GB of memory",
        "    large: 16 CPUs, 2 GPUs, 64.0 GB of memory",
    ]
    assert "hydra.launcher.resources.licence: a trial asks for 1 of 'licence'" in str(unmet({"licence": 1.0}, NODES))


def test_what_no_node_has_at_once_is_told_too() -> None:
    nodes = [Node("a", "first", {"CPU": 4.0}), Node("b", "second", {"GPU": 1.0})]
    assert "hydra.launcher: a trial asks for 2 CPUs, 1 GPU, and no node has all of that" in str(unmet({"CPU": 2.0, "GPU": 1.0}, nodes))


def test_there_is_room_for_as_many_trials_as_each_node_takes_by_itself(tmp_path: Path) -> None:
    with sweep(tmp_path, "hydra.launcher.num_cpus=3", "hydra.launcher.memory=20GB") as program:
        asked = asked_of(ray_options(program.config))

    assert asked == {"CPU": 3.0, "memory": 20e9}
    assert room_for(asked, NODES) == 3  # none on the small one, and of the large one its memory is enough for three
    assert room_for({"GPU": 0.1}, NODES) == 20


@needs_ray
def test_an_address_at_which_nothing_answers_or_something_else_does_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        with sweep(tmp_path, f"hydra.launcher.address=127.0.0.1:{port}") as program:
            options = ray_options(program.config)
            with pytest.raises(UserError, match=rf"hydra.launcher.address: 127.0.0.1:{port} cannot be reached: .*refused"):
                Cluster(options)
            server.listen()
            with pytest.raises(UserError, match=rf"127.0.0.1:{port} cannot be reached: timed out"):
                Cluster(options)

            def speak() -> None:
                for _ in range(2):
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"SSH-2.0-OpenSSH\r\n")

            threading.Thread(target=speak, daemon=True).start()
            with pytest.raises(UserError, match=rf"hydra.launcher.address: what answers at 127.0.0.1:{port} is not Ray"):
                Cluster(options)


def assignment(program: Program, folder: Path, token: str, **changes: Any) -> WorkerSetup:
    pool = PoolOptions(n_workers=None, threads=1, gpus=None, memory_gb=None, max_jobs=None, fork=False)
    given = {
        "setup": Setup.of_this_process(program),
        "folder": str(folder),
        "token": token,
        "cwd": str(Path.cwd()),
        "elsewhere": "trials",
        "has_working_dir": False,
        "has_gpus": False,
        "files": {"seen": str(folder), "unseen": str(folder / "study.db")},
        "options": pool,
        "variables": {"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
        "timeout": None,
        "wants_returns": True,
    }
    return WorkerSetup(**{**given, **changes})


def test_a_worker_runs_trials_in_the_sweeps_folder_where_it_sees_it_and_elsewhere_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, folder = tmp_path / "home", tmp_path / "multirun"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("MLFLOW_TRACKING_URI", "CUDA_VISIBLE_DEVICES"):  # a worker changes its process, which is this one here
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    word = token_of(folder)
    with sweep(tmp_path) as program:
        composer = Composer(program.hydra_context.config_loader, program.config)
        near = RayWorker(assignment(program, folder, word)).facts()
        far = RayWorker(assignment(program, folder, "a" * 32))
        outcome, returned = far.run(SweepJob(7, ["x=3"], {}), composer.compose_job(["x=3"]))
        far._pool.close()

    assert (near.shares_folder, near.folder, near.unseen) == (True, str(folder), ["unseen"])
    place = home / "trials" / "multirun-aaaaaaaa"
    assert (far.facts().shares_folder, far.facts().folder) == (False, str(place))
    assert outcome.value == f"{place} http://mlflow:5000 3"
    assert (place / "7" / ".hydra" / "config.yaml").read_text() == "x: 3\n"
    assert (place / "7" / "output.log").is_file()
    assert returned is not None
    assert not (folder / "7").exists()


def test_where_the_official_launcher_is_installed_other_programs_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    options = SweeperOptions("speechtrain-sweeper", "speechtrain-sweeper://")
    assert options.is_config("hydra/launcher/ray")

    launchers = ConfigStore.instance().repo.setdefault("hydra", {}).setdefault("launcher", {})
    monkeypatch.setitem(launchers, "ray.yaml", object())

    assert not options.is_config("hydra/launcher/ray")
    assert options.list("hydra/launcher", ObjectType.CONFIG) == ["pool"]
