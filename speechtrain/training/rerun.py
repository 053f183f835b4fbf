"""Repeats a run from its config in MLflow (`rerun=RUN_ID`), and prints what has changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf, open_dict

from speechtrain.config.compose import set_values
from speechtrain.config.stored import foreign_targets, read_yaml, stored_values
from speechtrain.console import console
from speechtrain.errors import ConfigError, Problem
from speechtrain.tracking import provenance
from speechtrain.tracking.mlflow.lookup import open_reader
from speechtrain.tracking.recorder import RESUMED
from speechtrain.tracking.run_folder import read_run_file
from speechtrain.training.resumed import described

if TYPE_CHECKING:
    from speechtrain.training.result import Result

_OWN_KEYS = ("output_dir", "tracking", "resume", "rerun", "trust", "report", "samples", "export")
"""Keys that the repeated run takes from its own command, not from the stored config."""
_MAY_DIFFER = ("best/epoch", "time/", "system/", "audio_s_per_s", "model/latency_ms")


class Rerun:
    """Finds the run that is to be repeated, and makes the config of its repetition.

    Args:
        cfg: the composed config, with `rerun` and the trackers.
        overrides: overrides as typed on the command line.

    Raises:
        ConfigError: there is no such run, it cannot be repeated, or an override does not fit it.
    """

    def __init__(self, cfg: DictConfig, overrides: Sequence[str]) -> None:
        node = (cfg.get("tracking") or {}).get("mlflow")
        if node is None:
            raise ConfigError([Problem("rerun", "needs MLflow, and the trackers are without it", "leave tracking=[mlflow] in")])
        uri_key = "tracking.mlflow.tracking_uri"
        self.reader = open_reader(node.tracking_uri, node.experiment, runs=[str(cfg.rerun)], key="rerun", uri_key=uri_key)
        self.before = self.reader.run(str(cfg.rerun), key="rerun")
        if self.before.is_sweep:
            raise ConfigError([Problem("rerun", f"{cfg.rerun} is a sweep", "give one of its trials, or repeat it with the same command")])
        text = self.reader.text(self.before, "config.yaml")
        if text is None:
            raise ConfigError([Problem("rerun", f"the run {self.before.id} has no config.yaml", "give a run of speechtrain")])
        place = f"run {self.before.id}"
        values = stored_values(read_yaml(text, f"config.yaml of {place}"), place, trust=cfg.trust)
        if foreign := [] if cfg.trust else foreign_targets({"callbacks": values.get("callbacks", [])}):
            fix = "trust=true runs it, if you trust the run"
            raise ConfigError([Problem(key, f"in {place} is {target}, which is not of this package", fix) for key, target in foreign])
        stored = OmegaConf.create(values)
        with open_dict(stored):
            for key in _OWN_KEYS:
                if key in cfg:
                    stored[key] = cfg[key]
        self.changes = [item for item in overrides if not item.startswith((*(f"{key}=" for key in _OWN_KEYS), "tracking.", "report."))]
        set_values(stored, self.changes)
        self.cfg = stored

    @property
    def tags(self) -> dict[str, str]:
        """Return the tags that name the repeated run in the trackers."""
        return {"speechtrain.rerun_of": self.before.id}

    def print_differences(self) -> None:
        """Print what has changed since: code, versions, machine, config."""
        changed = differences(self.before.tags, provenance.run_tags(()))
        if self.reader.text(self.before, "git.diff") != (provenance.git_diff() or None):
            changed["uncommitted changes"] = ("those in git.diff", "others")
        console.print(f"rerun of {self.before.name} {self.before.id}", markup=False)
        for name, (was, now) in changed.items():
            console.print(f"  {name}: was {was}, is {now}", style="yellow", markup=False)
        for line in described(self.before.tags.get(RESUMED, "[]")):
            text = f"  {line}; the rerun has the last values from its first epoch on, so its history differs"
            console.print(text, style="yellow", markup=False)
        for item in self.changes:
            console.print(f"  changed on purpose: {item}", markup=False)
        if not changed and not self.changes:
            console.print("  code, versions and machine are as they were", markup=False)

    def print_outcome(self, result: Result) -> None:
        """Print whether the data was the same, and which metrics differ."""
        now = read_run_file(result.folder).get("data", {})
        for split, fingerprint in now.items():
            was = self.before.tags.get(f"data.fingerprint.{split}")
            if was != fingerprint:
                console.print(f"  the {split} data is not what it was (fingerprint {was}, now {fingerprint})", style="yellow", markup=False)
        after = _final(result)
        shared = [name for name in after if name in self.before.metrics and not any(word in name for word in _MAY_DIFFER)]
        differing = [name for name in shared if after[name] != self.before.metrics[name]]
        if shared and not differing:
            console.print(f"all {len(shared)} metrics are identical to those of {self.before.id}", style="green", markup=False)
        for name in differing:
            console.print(f"  {name}: was {self.before.metrics[name]:.6g}, is {after[name]:.6g}", style="yellow", markup=False)


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return what has changed of the code, the versions and the machine: name -> (was, is)."""
    watched = ("mlflow.source.git.commit", "git.dirty", "python", "platform", "host", "cpu_count", "OMP_NUM_THREADS")
    names = [*watched, *sorted({name for name in (*before, *now) if name.startswith("version.")})]
    labels = {"mlflow.source.git.commit": "commit", "git.dirty": "uncommitted changes"}
    return {
        labels.get(name, name.removeprefix("version.")): (before.get(name, "nothing"), now.get(name, "nothing"))
        for name in names
        if before.get(name) != now.get(name)
    }


def _final(result: Result) -> dict[str, float]:
    """Return the last value of each metric, as the trackers have it."""
    last = {name: value for epoch in result.history for name, value in epoch.items()}
    return {**last, **{name: value for name, value in result.metrics.items() if name.startswith(("test/", "data/", "model/"))}}
