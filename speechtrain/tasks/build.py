"""Builds the task and the decoder that a config names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from speechtrain.config.build import build
from speechtrain.config.experiment import Component, ExperimentConfig
from speechtrain.config.targets import UnknownTargetError, signature
from speechtrain.data.cut_table import texts_of

if TYPE_CHECKING:
    from speechtrain.data.task_data import PreparedCorpus
    from speechtrain.data.text.base import Tokenizer
    from speechtrain.decode.base import Decoder
    from speechtrain.tasks.base import Task


def build_decoder(node: Component, tokenizer: Tokenizer) -> Decoder:
    """Build the decoder that a node names, with the tokenizer if it takes one."""
    try:
        accepted = signature(str(node["_target_"]))
    except (UnknownTargetError, SyntaxError):
        accepted = None
    arguments = {"tokenizer": tokenizer} if accepted is not None and "tokenizer" in accepted.names else {}
    decoder: Decoder = build("decoder", node, **arguments)
    return decoder


def build_task(cfg: ExperimentConfig, *, tokenizer: Tokenizer, input_size: int, target_size: int = 0) -> Task:
    """Build the task that a config names, with those of the arguments and the decoder that it takes.

    Args:
        cfg: the composed config.
        tokenizer: tokenizer of the texts.
        input_size: number of values F per feature frame.
        target_size: number of values C per frame of the target signals; 0 if there are none.
    """
    try:
        accepted = signature(str(cfg.task["_target_"]))
    except (UnknownTargetError, SyntaxError):
        accepted = None
    available: dict[str, Callable[[], Any]] = {
        "tokenizer": lambda: tokenizer,
        "decoder": lambda: build_decoder(cfg.decoder, tokenizer),
        "input_size": lambda: input_size,
        "target_size": lambda: target_size,
    }
    names = [name for name in available if accepted is None or accepted.open or name in accepted.names]
    task: Task = build("task", cfg.task, **{name: available[name]() for name in names})
    return task


def task_for(cfg: ExperimentConfig, data: PreparedCorpus) -> Task:
    """Build the task for a corpus, and let it collect statistics of the training texts."""
    task = build_task(cfg, tokenizer=data.tokenizer, input_size=data.features.size, target_size=data.corpus.target_size)
    task.learn(texts_of(data.corpus.splits["train"]))
    return task
