"""Checks whether a `_target_` exists and takes the arguments that its node has for it; its source is read, and nothing imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from speechtrain.config.components import arguments
from speechtrain.config.moved import present_name
from speechtrain.config.targets import Signature, UnknownTargetError, signature, type_mismatch
from speechtrain.errors import Problem, did_you_mean

RUN_TIME_ARGUMENTS = {
    "model": ("input_size",),
    "optimizer": ("params",),
    "tokenizer": ("texts",),
    "task": ("tokenizer", "decoder", "input_size", "target_size"),
    "decoder": ("tokenizer",),
}
"""The arguments that a target of a group gets from the program, besides its keys."""


def _unknown_target(path: str, target: str, error: UnknownTargetError) -> Problem:
    """Return what is wrong with a `_target_` that does not exist: it has moved, another backend has it, or its name is misspelt."""
    key = f"{path}._target_"
    if present_name(target) != target:
        return Problem(key, f"{target} has moved", f"write {present_name(target)}")
    if other := _other_backend(target):
        return Problem(
            key, f"{target.rpartition('.')[2]} is there for backend={other} only", f"set backend={other}, or choose another {path}"
        )
    return Problem(key, str(error), did_you_mean(target, error.nearest) if error.nearest else "")


def _other_backend(target: str) -> str | None:
    """Return the backend that has the class which `target` looks for in another one; None: neither has it."""
    for here, there in (("keras", "torch"), ("torch", "keras")):
        if target.startswith(f"speechtrain.backends.{here}."):
            try:
                signature(target.replace(f".{here}.", f".{there}.", 1))
            except (UnknownTargetError, SyntaxError):
                return None
            return there
    return None


def target_problems(path: str, node: DictConfig) -> Iterator[Problem]:
    """Yield what is wrong with the class that a component names, and with the arguments that its keys are."""
    group = path.split(".")[0]
    target = str(node["_target_"])
    try:
        takes = signature(target)
    except UnknownTargetError as error:
        yield _unknown_target(path, target, error)
        return
    except SyntaxError as error:
        yield Problem(f"{path}._target_", f"{error.filename} line {error.lineno} cannot be read: {error.msg}", "mend the file")
        return
    if takes is None:
        return
    passed = arguments(group, node)
    at_run_time = RUN_TIME_ARGUMENTS.get(group, ())
    for key in passed if not takes.open else ():
        if key not in takes.names:
            near = did_you_mean(key, set(takes.names) - set(at_run_time), prefix=path)
            yield Problem(f"{path}.{key}", f"{target} takes no argument '{key}'", near)
    if OmegaConf.get_type(node) is dict:  # without a schema, which would have checked the types of its keys
        yield from _type_problems(path, passed, takes)
    for key in takes.required:
        if key not in passed and key not in at_run_time:
            yield Problem(f"{path}.{key}", f"{target} needs it", f"add +{path}.{key}=...")


def _type_problems(path: str, passed: Mapping[str, Any], takes: Signature) -> Iterator[Problem]:
    """Yield arguments that do not have the type with which their target annotates them."""
    for key, value in passed.items():
        if key in takes.annotations and (wanted := type_mismatch(value, takes.annotations[key])) is not None:
            yield Problem(f"{path}.{key}", f"must be {wanted}, received {value!r}", "")
