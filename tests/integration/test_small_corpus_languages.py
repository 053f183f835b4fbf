"""The recipe for a small corpus is made for no language: alphabets with marks and cases of their own, and texts without spaces."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import soundfile
from conftest import thinned
from corpora import tones

import speechtrain
from speechtrain import compose
from speechtrain.evaluate import run as evaluate

TEXTS = {
    "hindi": ["नमस्ते दुनिया", "क्या हाल है", "मैं ठीक हूँ", "कृपया बैठिए", "धन्यवाद मित्र", "फिर मिलेंगे"],
    "turkish": ["ışık ılık İzmir", "iki ısırgan", "İstanbul güzel", "Diyarbakır kışı", "ırmak ve deniz", "içli dışlı"],
    "german": ["„Straße“, sagte er", "süße Grüße", "er heißt Jörg", "»weiß« und ‚groß‘", "Füße im Fluß", "Übermaß"],
    "chinese": ["今天天气很好", "我喜欢喝茶", "他在学校读书", "明天见朋友", "请问几点了", "欢迎来到北京"],
}


def corpus(root: Path, texts: list[str]) -> Path:
    """Two recordings of tones of each text; the texts are written in decomposed characters, as some systems do."""
    (root / "audio").mkdir(parents=True)
    lines = []
    for number, text in enumerate(2 * texts):
        path = f"audio/{number}.wav"
        soundfile.write(root / path, samples := tones(text), 16000)
        entry = {"audio_filepath": path, "duration": len(samples) / 16000, "text": unicodedata.normalize("NFD", text)}
        lines.append(json.dumps({**entry, "speaker": f"s{number % 3}"}, ensure_ascii=False) + "\n")
    for name in ("train", "valid", "test"):
        renamed = (line.replace("{", f'{{"utt_id": "{name}-{number}", ', 1) for number, line in enumerate(lines))
        (root / f"{name}.jsonl").write_text("".join(renamed), encoding="utf-8")
    return root


@pytest.mark.parametrize("language", thinned(TEXTS, 4))
def test_the_recipe_trains_and_its_n_gram_decodes_in_any_script(language: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = TEXTS[language]
    options = ["tracking=[]", "report.enabled=false", "backend.threads=1", "data.feature_cache=null", "data.on_shared.audio=allow"]
    sizes = ["model.channels=32", "trainer.epochs=2", "trainer.precision=32-true"]
    root = corpus(tmp_path / "corpus", texts)
    with caplog.at_level("INFO"):
        found = speechtrain.train(compose(["experiment=small_corpus", f"data.root={root}", *options, *sizes]))
    folder = found.folder
    assert {sample.reference for sample in found.samples} == {unicodedata.normalize("NFC", text) for text in texts}
    assert "val/cer" in found.metrics
    assert ("the texts have no spaces" in caplog.text) is (language == "chinese")
    assert evaluate([f"from={folder}", "decoder=beam", f"decoder.lm={folder / 'lm.arpa'}", "report=false"]) == 0
    decoded = json.loads((folder / "evaluation-test" / "evaluation.json").read_text(encoding="utf-8"))["decoders"]["beam"]
    assert 0 < decoded["metrics"]["cer"] <= 1.5
