"""Disks that fail at any write: the error names the file, what was there is whole, nothing is left over, and the run goes on afterwards."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY
from faulty_disk import Disk, Fault
from fuzzing import files_below, generators

from speechtrain.backends.torch.checkpoint import read

TRAINING = [*TINY, "model=mlp", "model.hidden_sizes=[8]", "trainer.epochs=2", "samples=0", "hydra.run.dir=outputs/run"]
USES = (
    ["evaluate", "from=outputs/run", "out=results", "report=false"],
    ["transcribe", "from=outputs/run", "out=results", "clip.wav"],
    ["align", "from=outputs/run", "data=synthetic", "split=test", "out=results", "format=[textgrid,ctm,json]"],
    ["export", "from=outputs/run", "out=results", "format=[archive]"],
)
REASONS = (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO)
MOST_WRITES = 51
"""As many writes a training has; a command has fewer, and a fault that comes later than its last one is none."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """The process that runs commands; it has a temporary folder of its own."""
    disk = Disk()
    yield disk
    disk.close()


def drawn(rng: random.Random, most_writes: int) -> Fault:
    if rng.random() < 0.2:
        return Fault(limit=rng.choice((0, rng.randint(1, 5_000), rng.randint(1, 60_000))))
    return Fault(rng.randint(1, most_writes), rng.choice(REASONS), lasting=rng.random() < 0.5)


def judge(code: int, text: str, folder: Path, fault: Fault) -> None:
    """Look at what a command has printed and left."""
    received = f"{fault}, exit code {code}:\n{text[-3000:]}"
    assert code in (0, 1, 2), received
    assert "Traceback" not in text, received
    if code:
        reasons = [os.strerror(fault.reason)] if fault.limit is None else [os.strerror(errno.EFBIG)]
        assert any(reason in text for reason in reasons), received
        assert any(name in text for name in (str(folder), "outputs", "results")), received
    left = [name for name in files_below(folder) if ".tmp" in name or Path(name).name.startswith((".export", "tmp"))]
    assert not left, f"{left}, {received}"
    for path in folder.rglob("*.ckpt"):
        read(path)
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())


def test_a_training_on_a_disk_that_fails_says_so_and_goes_on_once_there_is_room(tmp_path: Path, disk: Disk) -> None:
    for number, rng in generators("disks training", 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        fault = drawn(rng, MOST_WRITES)
        code, text = disk.run(folder, TRAINING, fault)
        judge(code, text, folder, fault)
        begun = (folder / "outputs" / "run" / "run.json").is_file()
        code, text = disk.run(folder, ["resume=last"] if begun else TRAINING, Fault())
        assert code == 0, f"{fault}, and then\n{text[-3000:]}"
        judge(code, text, folder, fault)
        assert len((folder / "outputs" / "run" / "history.jsonl").read_text().splitlines()) == 2, fault
        assert json.loads((folder / "outputs" / "run" / "run.json").read_text())["status"] == "FINISHED", fault
        shutil.rmtree(folder)


@pytest.mark.slow
def test_what_a_trained_model_is_used_for_on_a_disk_that_fails_leaves_whole_files_or_none(
    tmp_path: Path, disk: Disk, trained: Path, spoken: dict[str, str]
) -> None:
    for number, rng in generators("disks use", len(USES)):
        folder = tmp_path / str(number)
        shutil.copytree(trained, folder / "outputs" / "run")
        shutil.copy(next(iter(spoken)), folder / "clip.wav")
        before = files_below(folder)
        fault = drawn(rng, 14)
        code, text = disk.run(folder, USES[number % len(USES)], fault)
        judge(code, text, folder, fault)
        assert before <= files_below(folder), fault
        code, text = disk.run(folder, USES[number % len(USES)], Fault())
        assert code == 0, f"{fault}, and then\n{text[-3000:]}"
        shutil.rmtree(folder)


def test_an_export_that_cannot_be_written_names_the_key_of_its_folder(tmp_path: Path, disk: Disk, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "outputs" / "run")
    code, text = disk.run(tmp_path, USES[3], Fault(2, errno.EACCES, lasting=True))
    assert code == 2
    assert "run.zip: cannot be written (Permission denied)\n    -> set out to a folder that can be written" in text.replace(" \n", "\n")
