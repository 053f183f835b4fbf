"""The model class that MLflow runs to serve a model; this file is copied into the model's folder."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import mlflow
import pandas as pd

_URI = "base64,"


class TranscribingModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]
    """Gives text and confidence for audio.

    The input has a column `audio`: a path, the content of an audio file (bytes; in JSON a text that ends in `base64,...`), or samples.
    The parameter `sample_rate` is that of samples, in Hz.
    """

    def load_context(self, context: Any) -> None:
        """Load the model from its artifact `weights`."""
        from speechtrain.inference.recognizer import Recognizer

        self._recognizer = Recognizer.load(context.artifacts["weights"], trust=True)  # whoever loads an MLflow model runs its code

    def predict(  # type: ignore[no-untyped-def]
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,  # MLflow warns of any other type that it cannot make a schema of
        params: dict[str, Any] | None = None,
    ):
        """Return a row of `text` and `confidence` for each row of audio; a list of audio is taken too.

        Raises:
            DataError: audio that cannot be read.
        """
        audios = list(model_input["audio"]) if isinstance(model_input, pd.DataFrame) else list(model_input)
        rate = int((params or {}).get("sample_rate") or 0) or None
        transcriptions = list(self._recognizer.transcribe_all([_content(audio) for audio in audios], rate))
        return pd.DataFrame({"text": [item.text for item in transcriptions], "confidence": [item.confidence for item in transcriptions]})


def _content(audio: Any) -> Any:
    """Decode a text in base 64 to bytes, and return anything else unchanged."""
    if isinstance(audio, str) and _URI in audio[:100]:
        try:
            return base64.b64decode(audio.partition(_URI)[2], validate=True)
        except binascii.Error:
            return b""
    return audio


mlflow.models.set_model(TranscribingModel())
