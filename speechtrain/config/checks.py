"""Checks what composing cannot see: gathers the problems of each node and target, and adds what is wrong between keys and groups.

All problems are gathered before any is reported. Nothing here imports a framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from speechtrain.config.components import callback_nodes
from speechtrain.config.extras import modules_of, needed
from speechtrain.config.hub import local_problem
from speechtrain.config.moved import present_name
from speechtrain.config.node_checks import NO_VALUE, NOT_CHOSEN, child_nodes, find_node_problems
from speechtrain.config.pretrained import Checkpoint
from speechtrain.config.schema import SCHEMAS
from speechtrain.config.schemas.data import Featurised, Generated, Loading, SignalData
from speechtrain.config.schemas.models import Pretrained
from speechtrain.config.schemas.node import Node
from speechtrain.config.schemas.sound import PretrainedFeatures, PretrainedTokens, StoredFeatures, WaveformFeatures
from speechtrain.config.target_checks import target_problems
from speechtrain.config.targets import UnknownTargetError, class_constant, signature, task_directions
from speechtrain.errors import ConfigError, Problem, did_you_mean
from speechtrain.files import is_file, is_folder, user_path


def find_problems(cfg: DictConfig) -> list[Problem]:
    """Return all problems of a composed config."""
    problems = find_node_problems(cfg, "")
    if any(problem.message in (NO_VALUE, NOT_CHOSEN) for problem in problems):
        return problems
    unsound = {problem.path.split(".")[0] for problem in problems}
    for group, node in child_nodes(cfg):
        nodes = {f"tracking.{name}": child for name, child in child_nodes(node)} if group == "tracking" else {group: node}
        for path, child in nodes.items():
            if "_target_" in child and group not in unsound:
                problems += target_problems(path, child)
    problems += _tracker_problems(cfg)
    problems += _callback_problems(cfg)
    problems += _between_groups(cfg)
    return problems


def _tracker_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield a problem for each entry of `tracking` that is not a tracker; `tracking.mlflow=3` composes, for trackers have no schema."""
    tracking = cfg.get("tracking")
    for name in tracking if isinstance(tracking, DictConfig) else ():
        node: Any = tracking[name]
        if not isinstance(node, DictConfig) or "_target_" not in node:
            fix = f"set its keys (tracking.{name!s}.KEY=VALUE), or leave the tracker out, for example tracking=[mlflow] or tracking=[]"
            yield Problem(f"tracking.{name!s}", f"must be a tracker with its keys, received {node!s:.80}", fix)
        elif node.get("log_last") is True:
            yield from _unkept(cfg, f"tracking.{name!s}.log_last")


def _unkept(cfg: DictConfig, path: str) -> Iterator[Problem]:
    """Yield why what a run goes on from cannot be kept by a tracker that is to do so."""
    if OmegaConf.select(cfg, "trainer.checkpoint.save_last") is False:
        yield Problem(path, "is true, and no last checkpoint is written that could be kept", "set trainer.checkpoint.save_last=true")
    if OmegaConf.select(cfg, "data.folds") is not None and OmegaConf.select(cfg, "data.fold") is None:
        yield Problem(path, "is true, and a cross-validation (data.folds) goes on from its folder alone", f"set {path}=false")


def _callback_problems(cfg: DictConfig) -> Iterator[Problem]:
    for number, callback in enumerate(callback_nodes(cfg)):
        path = f"callbacks.{number}"
        if isinstance(callback.get("_target_"), str):
            yield from target_problems(path, OmegaConf.create(callback))
        else:
            message = f"must be a class by its dotted path, received {callback!r:.80}"
            yield Problem(path, message, "for example callbacks=[mine.Callback]")


def find_training_problems(cfg: DictConfig) -> list[Problem]:
    """Return all problems of a composed config that is to be trained: also metrics of validation data that there are none of."""
    return [*find_problems(cfg), *_without_validation(cfg)]


def _without_validation(cfg: DictConfig) -> Iterator[Problem]:
    """Yield the keys that name a metric of the validation data, where the config says that there are none."""
    for path, metric in _monitored(cfg).items():
        if metric is not None and metric.startswith("val/") and _has_no_validation(cfg):
            yield unvalidated(path, metric)


def _has_no_validation(cfg: DictConfig) -> bool:
    data = cfg.data
    if "val" not in data or "data.val" in cfg.get("choose", []):
        return False
    return not (data.val or OmegaConf.select(data, "split.val") or data.get("folds") is not None)


def unmeasured(cfg: DictConfig, metrics: Mapping[str, str]) -> list[Problem]:
    """Return a problem for each key whose metric no epoch of a training with this config would measure.

    Args:
        cfg: the composed config.
        metrics: the metrics by the keys that name them.
    """
    names = _task_metrics(cfg)
    problems = list(unknown_metrics(metrics, names)) if names else []
    unknown = {problem.path for problem in problems}
    if _has_no_validation(cfg):
        problems += [unvalidated(path, each) for path, each in metrics.items() if each.startswith("val/") and path not in unknown]
    return problems


def _task_metrics(cfg: DictConfig) -> list[str]:
    """Return the names of the metrics that the task measures on validation data, as far as its source says."""
    phonemes = class_constant(str(cfg.tokenizer.get("_target_")), "counts_phonemes")
    return [name for name in task_directions(str(cfg.task.get("_target_"))) if name != "per" or phonemes]


def unvalidated(path: str, metric: str) -> Problem:
    """Return the problem of a key that names a metric of validation data, of which there are none."""
    fix = f"give data.val or data.split.val, with data.split.by=text where there are few speakers, or set {path}=train/loss"
    return Problem(path, f"is {metric}, but there are no validation utterances", fix)


def _choices(cfg: DictConfig) -> Iterator[Problem]:
    """Yield what `choose` needs and does not have: a budget, and a backend that can time steps."""
    timed = [key for key in ("model.channels", "trainer.epochs", "trainer.precision") if key in cfg.get("choose", [])]
    if timed and cfg.budget_minutes is None:
        yield Problem("budget_minutes", f"has no value, and {timed[0]} is to be chosen for it", "for example budget_minutes=40")
    if timed and cfg.backend.get("name") != "torch":
        yield Problem("choose", f"names {timed[0]}, and only backend=torch can time a step by itself", "set the key, and take it out")


def _between_groups(cfg: DictConfig) -> Iterator[Problem]:
    yield from _choices(cfg)
    trainer, scheduler = cfg.trainer, cfg.scheduler
    warmup = scheduler.get("warmup_steps")
    if warmup is not None and trainer.max_steps is not None and warmup > trainer.max_steps:
        yield Problem(
            "scheduler.warmup_steps",
            f"is {warmup}, longer than the run of trainer.max_steps={trainer.max_steps}",
            f"set scheduler.warmup_steps to at most {trainer.max_steps}",
        )
    if cfg.augment.get("recombine_prob") and issubclass(OmegaConf.get_type(cfg.data) or dict, Generated):
        yield Problem("augment.recombine_prob", "needs word times, which only data=manifest has", "set augment.recombine_prob=0")
    yield from _what_goes_together(cfg)
    yield from _stored_feature_problems(cfg)
    yield from _waveform_problems(cfg)
    yield from _decoder_problems(cfg)
    if cfg.get("language_model") is not None and not _decodes(cfg.task):
        message = f"is {cfg.language_model}, and the task {cfg.task.get('_target_')} has no texts"
        yield Problem("language_model", message, "set language_model=null, or task=ctc")
    yield from _export_problems(cfg)
    if names := _task_metrics(cfg):
        yield from unknown_metrics(_monitored(cfg), names)
    yield from _keras_problems(cfg)
    f_max = cfg.features.get("f_max")
    rate = cfg.data.get("sample_rate")
    if f_max is not None and rate is not None and f_max > rate / 2:
        yield Problem(
            "features.f_max",
            f"is {f_max:g} Hz, above half of data.sample_rate ({rate / 2:g} Hz)",
            f"set features.f_max={rate / 2:g} or lower",
        )
    for key in ("resume", "init_from"):
        name = cfg.get(key)
        path = user_path(name or "")
        if name is not None and ("/" in name or path.suffix) and not (is_file(path) or is_folder(path)):
            fix = "give last, a run's folder, a checkpoint or an MLflow run id"
            yield Problem(key, f"no such run or checkpoint: {Path(name).absolute()}", fix)


_ONLY_TORCH: Mapping[str, object] = {
    "ema_decay": None,
    "average_last": None,
    "layer_dropout": 0,
    "find_lr": False,
    "gradient_checkpointing": False,
    "sync_batchnorm": False,
}
"""Keys of the trainer that only the Torch backend has, with the values that switch them off."""
KERAS_ACCELERATORS = ("auto", "cpu", "gpu")


def _keras_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield keys that ask the Keras backend for what only the Torch backend can do."""
    if cfg.backend.get("name") != "keras":
        return
    for key, off in _ONLY_TORCH.items():
        if (value := cfg.trainer.get(key, off)) != off:
            message = f"is {value}, which only the Torch backend can do"
            yield Problem(f"trainer.{key}", message, f"set trainer.{key}={'null' if off is None else off}, or backend=torch")
    if cfg.task.get("intermediate"):
        message = f"is {cfg.task.intermediate}; the Keras backend has no head in the middle"
        yield Problem("task.intermediate", message, "set task.intermediate=0, or backend=torch")
    if cfg.trainer.get("batch_seconds") == "auto":
        message = "is auto; the Keras backend cannot measure a step by itself"
        yield Problem("trainer.batch_seconds", message, "set data.batch_seconds, or backend=torch")
    if cfg.trainer.get("accelerator", "auto") not in (*KERAS_ACCELERATORS, "cuda"):
        message = f"is {cfg.trainer.accelerator}, which the Keras backend does not know"
        yield Problem("trainer.accelerator", message, f"set trainer.accelerator={' or '.join(KERAS_ACCELERATORS)}")
    if cfg.trainer.get("devices", 1) not in (1, "1", "auto"):
        message = f"is {cfg.trainer.devices}; the Keras backend trains on one device"
        yield Problem("trainer.devices", message, "set trainer.devices=1")
    if cfg.trainer.get("strategy", "auto") != "auto":
        yield Problem("trainer.strategy", f"is {cfg.trainer.strategy}; that is Lightning's", "set trainer.strategy=auto")


def _what_goes_together(cfg: DictConfig) -> Iterator[Problem]:
    """Yield groups whose options do not go together, by the `goes_with` of their schemas."""
    kinds = {group: OmegaConf.get_type(node) for group, node in child_nodes(cfg)}
    chosen = {group: kind for group, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Node)}
    for group, kind in chosen.items():
        for other, wanted in kind.goes_with.items():
            if other in chosen and chosen[other].__name__ not in wanted:
                options = _options_of(other, wanted)
                own = _options_of(group, (kind.__name__,))
                message = f"does not go with {group}={'|'.join(own)}"
                yield Problem(other, message, f"set {other}={' or '.join(options)}, or leave it out: {group} may set it")


def _options_of(group: str, names: Sequence[str]) -> list[str]:
    return [option for option, kind in SCHEMAS.get(group, {}).items() if kind.__name__ in names]


def _waveform_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield augmentation of spectra where features are waveforms, and a file of pretrained weights that does not exist."""
    kind = OmegaConf.get_type(cfg.features) or dict
    if issubclass(kind, (WaveformFeatures, PretrainedFeatures)):
        option = "waveform" if issubclass(kind, WaveformFeatures) else "pretrained"
        for key in ("tempo", "warp", "noise_prob", "eq_db", "freq_masks", "delay", "frame_dropout"):
            if cfg.augment.get(key):
                fix = f"set augment.{key}=0, or augment=none; speed, time masks and augmentation with folders of recordings are there"
                yield Problem(f"augment.{key}", f"works on spectra, and features={option} has none", fix)
    if cfg.model.get("path") is not None and issubclass(OmegaConf.get_type(cfg.model) or dict, Pretrained):
        yield from _checkpoint_problems(cfg)
        yield from _thaw_problems(cfg)
    weights = cfg.model.get("weights")
    if isinstance(weights, str) and cfg.resume is None and not is_file(user_path(weights)):
        yield Problem("model.weights", f"no such file: {user_path(weights).absolute()}", "give the file of the pretrained model, or null")


def _thaw_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield a rule between keys: without gradients at first, weights look forgotten to several devices."""
    if not cfg.model.unfreeze_after or "find_unused" in str(cfg.trainer.get("strategy")):
        return
    devices = cfg.trainer.get("devices", 1)
    if _may_be_several(devices, str(cfg.trainer.get("accelerator"))):
        message = f"is set with trainer.devices={devices}; each of several waits for the gradients of weights that are frozen at first"
        fix = "set trainer.devices=1, trainer.strategy=ddp_find_unused_parameters_true, or model.unfreeze_after=0"
        yield Problem("model.unfreeze_after", message, fix)


def _may_be_several(devices: object, accelerator: str) -> bool:
    """Return whether `trainer.devices`, in any form that Lightning takes, means several devices, or may do so on some machine."""
    is_list = isinstance(devices, ListConfig) or "," in str(devices)
    names = [str(name) for name in devices] if isinstance(devices, ListConfig) else str(devices).replace(" ", "").strip(",").split(",")
    if {"auto", "-1"} & set(names):
        return accelerator not in ("cpu", "mps")
    return len(names) > 1 or (not is_list and names[0].isdecimal() and int(names[0]) > 1)


def _checkpoint_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield what is wrong with the folder of a pretrained checkpoint; one on the hub is read when the run begins."""
    if cfg.resume is not None or cfg.model.get("architecture") is not None:
        return
    if (problem := local_problem(cfg.model.path)) is not None:
        yield problem
    elif is_folder(user_path(cfg.model.path)):
        checkpoint = Checkpoint.find(cfg.model.path)
        readings: list[Callable[[], object]] = [lambda: checkpoint.architecture, lambda: checkpoint.extractor]
        if issubclass(OmegaConf.get_type(cfg.tokenizer) or dict, PretrainedTokens):
            readings.append(lambda: checkpoint.tokens(cfg.model.language))
        for read in readings:
            try:
                read()
            except ConfigError as error:
                yield from error.problems


_MONITORS = ("objective.metric", "trainer.early_stopping.monitor", "trainer.checkpoint.monitor")
"""The keys that name a metric which is watched while a model trains."""


def _monitored(cfg: DictConfig) -> dict[str, str | None]:
    return {path: OmegaConf.select(cfg, path) for path in _MONITORS}


def unknown_metrics(monitors: Mapping[str, str | None], names: Iterable[str]) -> Iterator[Problem]:
    """Yield the keys that name a metric which is not measured.

    Args:
        monitors: the metrics by the keys that name them.
        names: names of the task's metrics, which are measured on the validation data.
    """
    measured = [*(f"val/{name}" for name in names), "train/loss"]
    for path, metric in monitors.items():
        if metric is not None and metric not in measured:
            yield Problem(path, f"there is no metric '{metric}'", did_you_mean(metric, measured))


def _export_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield formats of the export at the end of training that the backend does not write, or whose packages are missing."""
    kinds = [str(kind) for kind in cfg.export.on_train_end]
    formats = class_constant(str(cfg.backend.get("_target_")), "formats")
    if isinstance(formats, dict):
        yield from unknown_formats("export.on_train_end", kinds, formats, str(cfg.backend.name))
    for rule in needed("export.on_train_end", modules_of(kinds, str(cfg.backend.name))):
        yield Problem(*rule)


def unknown_formats(key: str, kinds: Iterable[str], formats: Iterable[str], backend: str) -> Iterator[Problem]:
    """Yield the formats that a backend does not write.

    Args:
        key: the key that names them.
        kinds: the formats that are asked for.
        formats: the formats that the backend writes, beside the archive.
        backend: name of the backend.
    """
    known = [*formats, "archive"]
    for kind in kinds:
        if kind not in known:
            yield Problem(
                key, f"'{kind}' is not available for a model of backend={backend}", f"with backend={backend} there is {', '.join(known)}"
            )


def _decoder_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield what the beam search lacks: its package, a lexicon or a language model; here, for a stored config has no schema.

    A decoder that was chosen for a task which decodes nothing is one problem.
    """
    if present_name(str(cfg.decoder.get("_target_"))) != "speechtrain.decode.greedy.GreedyDecoder" and not _decodes(cfg.task):
        message = f"is {cfg.decoder.get('_target_')}, and the task {cfg.task.get('_target_')} decodes nothing"
        yield Problem("decoder", message, "leave decoder out, or set task=ctc")
        return
    if present_name(str(cfg.decoder.get("_target_"))) != "speechtrain.decode.beam.BeamDecoder":
        return
    for rule in needed("decoder.lexicon", ("flashlight",)) if cfg.decoder.get("lexicon") is not None else ():
        yield Problem(*rule)
    makes = {"lexicon": "a file with one word a line", "lm": "an ARPA file, which python -m speechtrain.lm text=FILE makes"}
    for key, fix in makes.items():
        name = cfg.decoder.get(key)
        if isinstance(name, str) and not is_file(user_path(name)):
            yield Problem(f"decoder.{key}", f"no such file: {user_path(name).absolute()}", f"give {fix}, or null")


def _decodes(task: DictConfig) -> bool:
    """Return whether a task takes a decoder, as far as its source says."""
    try:
        takes = signature(str(task.get("_target_")))
    except (UnknownTargetError, SyntaxError):
        return True
    return takes is None or takes.open or "decoder" in takes.names


def _stored_feature_problems(cfg: DictConfig) -> Iterator[Problem]:
    """Yield what does not go with stored features: data that is audio, and augmentation that needs audio."""
    kind = OmegaConf.get_type(cfg.data) or dict
    from_files = issubclass(kind, (Featurised, SignalData))
    if issubclass(OmegaConf.get_type(cfg.features) or dict, StoredFeatures) and issubclass(kind, Loading) and not from_files:
        yield Problem("features", "do not fit the data, which is audio", "set features=logmel")
    if from_files:
        of_audio = ("noise_folder", "reverb_folder", "lowpass_prob", "codec_prob", "gain_db")
        for key in ("speed", "warp", "noise_prob", "eq_db", "recombine_prob", *of_audio):
            if cfg.augment.get(key):
                yield Problem(f"augment.{key}", "needs audio, and there are only spectrograms", f"set augment.{key}=0, or augment=masks")
    if issubclass(kind, SignalData):
        for key in ("tempo", "freq_masks", "time_masks", "frame_dropout", "delay"):
            if cfg.augment.get(key):
                yield Problem(f"augment.{key}", "would change the samples but not the signal that is wanted", "set augment=none")
