"""What trackers are told of a trial besides its training: that its job was killed, or that it was pruned and will not go on."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from speechtrain.addresses import whole_values
from speechtrain.config.build import build
from speechtrain.config.moved import with_present_names
from speechtrain.tracking.run_folder import RUN_FILE, read_run_file, write_run_file


def delete_last(cfg: DictConfig, folder: Path) -> None:
    """Have the trackers delete what they keep for the runs in a trial's folder to go on from, for the trial was pruned."""
    for file in folder.glob(f"**/{RUN_FILE}"):
        for name, run_id in read_run_file(file.parent).get("run_ids", {}).items():
            if cfg.tracking.get(name, {}).get("log_last"):
                build("tracking", cfg.tracking[name]).delete_last(str(run_id), file.parent)


def close_runs(folder: Path, reason: str) -> None:
    """Mark as failed, with a reason, the tracker runs below a trial's folder that are still stored as running."""
    for file in folder.glob(f"**/{RUN_FILE}"):
        run = read_run_file(file.parent)
        if run.get("status") != "RUNNING" or not (file.parent / "config.yaml").is_file():
            continue
        cfg = OmegaConf.create(whole_values(OmegaConf.to_container(OmegaConf.load(file.parent / "config.yaml"))))
        assert isinstance(cfg, DictConfig)
        cfg = with_present_names(cfg)
        for name, run_id in run.get("run_ids", {}).items():
            if name in cfg.tracking:
                build("tracking", cfg.tracking[name]).abandon(run_id, reason)
        write_run_file(file.parent, {"status": "FAILED"})
