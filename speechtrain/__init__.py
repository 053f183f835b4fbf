"""Train, sweep and track CTC speech recognisers from composable Hydra configs.

From Python:

    import speechtrain
    result = speechtrain.train(speechtrain.compose(["data=synthetic", "model=mlp"]))
    print(result.metrics["test/cer"])
"""

from speechtrain.config import compose
from speechtrain.result import Result
from speechtrain.train import train

__version__ = "0.1.0"

__all__ = ["Result", "__version__", "compose", "train"]
