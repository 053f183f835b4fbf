"""The Dockerfile, .dockerignore and compose.yaml agree with the project: files, extras, versions, options of uv."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import containers
import pytest

REPOSITORY = containers.REPOSITORY
STAGES = containers.stages()
IMAGES = ["serve", "cuda", "cpu"]
"""The stages that people build; the others are steps to them."""
SECRETS = {"POSTGRES_PASSWORD": "of PostgreSQL alone", "S3_SECRET_KEY": "of S3 alone"}
SERVICES = containers.compose(SECRETS)["services"]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def uv() -> str:
    found = shutil.which("uv", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("needs uv beside Python, where `make install` puts it")
    return found


def test_the_default_image_is_the_one_without_a_gpu() -> None:
    assert list(STAGES)[-1] == "cpu"
    assert {*IMAGES} | {"base", "wheel"} == {*STAGES}


def test_the_version_of_python_stands_once_and_is_the_one_that_ci_runs() -> None:
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")

    versions = re.findall(r"\d+\.\d+(?=-slim)|^ARG PYTHON=(\S+)$", text, re.MULTILINE)
    assert [f">={version}" for version in versions] == [PYPROJECT["project"]["requires-python"]]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_a_command_of_the_package_as_a_user_without_privileges(name: str) -> None:
    stage = STAGES[name]

    user, group = stage.last("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert stage.instructions.index(("USER", stage.last("USER"))) > max(i for i, item in enumerate(stage.instructions) if item[0] == "RUN")
    assert stage.command[:2] == ["python", "-m"]
    command = Path(*stage.command[2].split("."))
    assert (REPOSITORY / command / "__main__.py").is_file() or (REPOSITORY / command.with_suffix(".py")).is_file()


@pytest.mark.parametrize("name", IMAGES)
def test_dependencies_are_installed_before_the_package_is_copied(name: str) -> None:
    instructions = STAGES[name].instructions
    copied = [arguments.split()[:-1] for name, arguments in instructions if name == "COPY"]
    assert copied == [["pyproject.toml", "requirements.lock"]], "another file that changes installs all dependencies again"


@pytest.mark.parametrize("name", IMAGES)
def test_what_uv_is_asked_to_install_is_what_it_would_install_here(name: str) -> None:
    asked = [words for words in STAGES[name].commands if words[:3] == ["uv", "pip", "install"] and "--no-deps" not in words]

    assert len(asked) == 1
    dry = [uv(), *asked[0][1:], "--dry-run", "--offline", "--python", sys.executable]
    done = subprocess.run(dry, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no changes" in done.stderr, done.stderr


def test_what_the_dockerfile_copies_is_sent_to_the_builder_and_nothing_else() -> None:
    sources = {word for stage in STAGES.values() for copy in stage.all("COPY") for word in copy.split()[:-1]}
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()

    assert next(line for line in lines if line and not line.startswith("#")) == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == sources
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []


def test_what_is_copied_for_the_wheel_is_enough_to_build_it(tmp_path: Path) -> None:
    for source in (word for copy in STAGES["wheel"].all("COPY") for word in copy.split()[:-1]):
        copied = shutil.copytree if (REPOSITORY / source).is_dir() else shutil.copy
        copied(REPOSITORY / source, tmp_path / source)
    asked = next(words for words in STAGES["wheel"].commands if words[:2] == ["uv", "build"])

    here = [uv(), *asked[1:-1], str(tmp_path / "wheels"), "--offline", "--no-build-isolation", "--python", sys.executable]
    done = subprocess.run(here, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {"speechtrain/train.py", "speechtrain/conf/config.yaml", "hydra_plugins/speechtrain_sweeper.py"} <= {*archive.namelist()}


def test_services_run_images_of_the_dockerfile_and_wait_for_what_they_need() -> None:
    for name, service in SERVICES.items():
        if "build" in service:
            assert service["build"]["target"] in IMAGES
            assert service["image"] == f"speechtrain:{service['build']['target']}"
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, name
            assert "healthcheck" in SERVICES[needed]


def test_folders_that_volumes_are_mounted_on_belong_to_the_user_of_the_image() -> None:
    made = next(words for words in STAGES["base"].commands if words[0] == "install")
    mounted = {volume.partition(":")[2] for service in SERVICES.values() if "build" in service for volume in service["volumes"]}

    assert mounted <= {word for word in made if word.startswith("/")}


def test_ports_are_published_on_this_machine_alone() -> None:
    ports = [str(port) for service in SERVICES.values() for port in service.get("ports", [])]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_a_password_is_asked_for_and_stands_in_no_file() -> None:
    for name in SECRETS:
        with pytest.raises(KeyError, match=name):
            containers.compose({other: value for other, value in SECRETS.items() if other != name})
    secret = {"PASSWORD": SECRETS["POSTGRES_PASSWORD"], "SECRET": SECRETS["S3_SECRET_KEY"]}
    for kind, value in secret.items():
        found = [text for service in SERVICES.values() for name, text in service["environment"].items() if kind in name]
        assert found
        assert set(found) == {value}
    assert "AWS_SECRET_ACCESS_KEY" not in {*SERVICES["train"]["environment"], *SERVICES["sweep"]["environment"]}, (
        "artifacts go through MLflow"
    )


def test_images_stages_and_services_that_the_page_names_exist() -> None:
    page = (REPOSITORY / "docs" / "containers.md").read_text(encoding="utf-8")
    commands = "\n".join(re.findall(r"^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))

    assert set(re.findall(r"--target (\S+)", commands)) == set(IMAGES) - {"cpu"}
    assert set(re.findall(r"speechtrain:(\w+)", commands)) == set(IMAGES)
    assert set(re.findall(r"compose run --rm (\S+)", commands)) == {name for name, service in SERVICES.items() if "profiles" in service}
    assert set(re.findall(r"--build-arg (\w+)=", commands)) == {"PYTHON"}
    mounted = {place for place in re.findall(r"--volume \S+?:(/\w+)", commands) if place != "/data"}
    assert mounted <= {word for words in STAGES["base"].commands if words[0] == "install" for word in words}
