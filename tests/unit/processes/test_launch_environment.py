"""What the environment says of a launcher."""

from __future__ import annotations

import pytest

from speechtrain.errors import UserError
from speechtrain.processes.launch_environment import first_node, launch_of, launch_of_trial, note_path

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RUN_ID": "mine",
    "TORCHELASTIC_MAX_RESTARTS": "3",
}
SRUN = {
    "SLURM_JOB_ID": "41000",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu-[07-08]",
}


def test_torchrun_says_which_process_this_is_and_how_the_launch_is_called() -> None:
    launch = launch_of(TORCHRUN)
    assert launch is not None
    assert (launch.launcher, launch.rank, launch.count, launch.local_rank, launch.node) == ("torchrun", 3, 4, 1, 1)
    assert (launch.address, launch.port, launch.key, launch.restarts) == ("node7", 29400, "torchrun-mine", True)


def test_a_launch_without_a_name_has_that_of_the_process_that_starts_all() -> None:
    names = {launch.key for _ in range(2) if (launch := launch_of({**TORCHRUN, "TORCHELASTIC_RUN_ID": "none"})) is not None}
    (name,) = names
    assert name not in (None, "torchrun-none")


def test_srun_says_the_same_in_its_own_words() -> None:
    launch = launch_of(SRUN)
    assert launch is not None
    assert (launch.launcher, launch.rank, launch.count, launch.local_rank, launch.node) == ("srun", 3, 4, 1, 1)
    assert (launch.address, launch.key) == ("gpu-07", "slurm-41000-0")
    others = {each.port for number in range(41000, 41010) if (each := launch_of({**SRUN, "SLURM_JOB_ID": str(number)})) is not None}
    assert len(others) == 10, "jobs that run beside each other meet at one port"


def test_two_steps_of_one_job_meet_at_ports_of_their_own_and_are_two_launches() -> None:
    launches = [launch for step in "01" if (launch := launch_of({**SRUN, "SLURM_STEP_ID": step})) is not None]
    assert len({launch.port for launch in launches}) == len({launch.name for launch in launches}) == 2


def test_a_process_trains_alone_among_the_variables_of_a_launcher_if_it_is_told_to() -> None:
    assert launch_of({**SRUN, "SPEECHTRAIN_LAUNCHER": "none"}) is None


def test_the_processes_of_a_trial_are_those_that_submitit_has_started() -> None:
    assert launch_of_trial(SRUN) is None  # what Ray's workers inherit from the step that has started them
    assert launch_of_trial({**TORCHRUN, "SUBMITIT_EXECUTOR": "slurm", "WORLD_SIZE": "1", "RANK": "0"}) is None
    launch = launch_of_trial({**SRUN, "SUBMITIT_EXECUTOR": "slurm"})
    assert launch is not None
    assert (launch.rank, launch.key) == (3, None)


@pytest.mark.parametrize("local", [{"LOCAL_WORLD_SIZE": "2"}, {}])
def test_machines_are_told_apart_where_a_script_sets_the_variables_of_torchrun(local: dict[str, str]) -> None:
    variables = {"WORLD_SIZE": "4", "MASTER_ADDR": "node7", "MASTER_PORT": "29400", **local}
    environments = [{**variables, "RANK": str(rank), "LOCAL_RANK": str(rank % 2)} for rank in range(4)]
    nodes = [launch.node for each in environments if (launch := launch_of(each)) is not None]
    assert nodes[0] == nodes[1] != nodes[2] == nodes[3]


def test_names_of_launches_that_differ_have_notes_that_differ() -> None:
    assert len({note_path(key).name for key in ("torchrun-a/b", "torchrun-a_b", "torchrun-a:b")}) == 3
    assert note_path("torchrun-large").name == "torchrun-large.json"


def test_a_torchrun_that_srun_has_started_is_torchrun() -> None:
    launch = launch_of({**SRUN, **TORCHRUN})
    assert launch is not None
    assert launch.launcher == "torchrun"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # of a batch script, which srun has not started
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"},  # of a container for PyTorch
        {"RANK": "1", "LOCAL_RANK": "1"},
    ],
)
def test_a_process_that_was_started_alone_has_no_launcher(environment: dict[str, str]) -> None:
    assert launch_of(environment) is None


def test_a_variable_that_is_no_number_is_named() -> None:
    with pytest.raises(UserError, match=r"WORLD_SIZE is 'two' in the environment, which is no number\n +-> "):
        launch_of({**TORCHRUN, "WORLD_SIZE": "two"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu-[03-05,9],cpu1", "gpu-03"),
        ("a", "a"),
        ("a,b", "a"),
        ("n[7,9]", "n7"),
        ("n[1-2]-ib.local,x", "n1-ib.local"),
        ("rack[0-1]node[00-15]", "rack0node00"),
    ],
)
def test_the_first_machine_of_a_list_of_slurms_is_found(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
