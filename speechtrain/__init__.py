"""Train, sweep and track CTC speech recognisers from composable Hydra configs.

From Python:

    import speechtrain
    result = speechtrain.train(speechtrain.compose(["data=synthetic", "model=mlp"]))
    print(result.metrics["test/cer"])
    print(speechtrain.load("last").transcribe("a.wav").text)
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import speechtrain.processes.quiet_start  # noqa: F401
from speechtrain.config import compose
from speechtrain.config.moved import import_moved_modules

if find_spec("speechtrain.train") is not None:  # the distribution speechtrain-sweeper is the sweeper alone
    from speechtrain.train import train
    from speechtrain.training.result import Result

if TYPE_CHECKING:
    from speechtrain.inference.recognizer import Recognizer

import_moved_modules()

__version__ = "0.2.0"

__all__ = ["Result", "__version__", "compose", "load", "train"]


def load(
    name: str = "last", *overrides: str, trust: bool = False, tracking_uri: str | None = None, experiment: str | None = None
) -> Recognizer:
    """Load a trained model, ready to be used: `.transcribe(audio)`, `.log_probs(audio)`, `.align(audio, text)`.

    Args:
        name: `last`, a run's folder, a checkpoint, an archive, an MLflow run id, its first letters or its name, or a model URI.
        overrides: changes of its `decoder` and `backend`, as typed on the command line: `"decoder=beam", "decoder.lexicon=words.txt"`.
        trust: whether its config may name classes of other packages, whose code is then run.
        tracking_uri: the server or database of MLflow; None takes `MLFLOW_TRACKING_URI`, or else `mlflow.db` in the current folder.
        experiment: the experiment of MLflow in which they are looked for; None takes `MLFLOW_EXPERIMENT_NAME`, or else `speechtrain`.

    Raises:
        UserError: there is no such model, it cannot be used, or an override does not fit.
    """
    from speechtrain.inference import find

    return find.load(name, *overrides, trust=trust, tracking_uri=tracking_uri, experiment=experiment)
