"""What is written of a pretrained checkpoint that was fine-tuned: a folder in the form of its library, and ONNX."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import pytest
import torch
from checkpoints import Make, recordings
from conftest import TINY
from test_torch_onnx import check_outputs

import speechtrain
from speechtrain import compose
from speechtrain.app.arguments import arguments_of
from speechtrain.backends.base import Backend
from speechtrain.backends.torch.backend import TorchBackend
from speechtrain.backends.torch.exports import to_onnx
from speechtrain.backends.torch.huggingface import write_folder
from speechtrain.config.build import build
from speechtrain.config.checkpoint_values import with_checkpoint_files
from speechtrain.config.experiment import ExperimentConfig
from speechtrain.config.pretrained import Checkpoint
from speechtrain.config.schemas.commands import ExportConfig
from speechtrain.errors import ConfigError, UserError
from speechtrain.inference import hub_folder
from speechtrain.inference.export import write_exports
from speechtrain.inference.recognizer import Recognizer
from speechtrain.tasks.build import build_task


@pytest.fixture
def backend() -> Backend:
    return TorchBackend(threads=1)


def recognizer_of(*options: str) -> Recognizer:
    """A model as a run builds it, with a large head, so that its texts differ."""
    cfg = with_checkpoint_files(ExperimentConfig.of(compose([*TINY[:1], "backend.threads=1", *options])))
    backend, features = TorchBackend(threads=1), build("features", cfg.features)
    tokenizer = build("tokenizer", cfg.tokenizer, texts=["abc de f", "the theme", "dead bed"])
    task = build_task(cfg, tokenizer=tokenizer, input_size=features.size)
    model = backend.build(cfg.model, task, input_size=features.size, seed=1)
    backend.load_pretrained(model, tokenizer.outputs)
    torch.nn.init.normal_(model.head.weight)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    return Recognizer(backend, model, task, features, tokenizer, cfg)


def test_code_that_a_checkpoint_names_is_left_out_wherever_its_config_comes_from(made: Make) -> None:
    folder = made("wav2vec2")
    architecture = {
        **Checkpoint.find(str(folder)).architecture,
        "auto_map": {"AutoModelForCTC": "evil.Model"},
        "_attn_implementation": "evil",
    }
    cfg = compose(["model=pretrained", f"model.path={folder}"])
    net = build("model", {**cfg.model, "architecture": architecture}, input_size=1).net
    assert not hasattr(net.config, "auto_map")
    assert net.config._attn_implementation == "sdpa"
    with pytest.raises(ConfigError, match=r"model.architecture: is of the kind 'llama'"):
        build("model", {**cfg.model, "architecture": {**architecture, "model_type": "llama"}}, input_size=1)


def test_a_folder_is_not_written_with_weights_that_only_one_side_has(made: Make, tmp_path: Path) -> None:
    own = recognizer_of("model=pretrained", f"model.path={made('wav2vec2')}")
    own.model.encoder.net.further = torch.nn.Linear(2, 2)
    with pytest.raises(NotImplementedError, match=r"the weight wav2vec2.further.bias of wav2vec2 is not in both"):
        write_folder(own.model, tmp_path, hub_folder.outputs_of(own))


def test_a_model_card_names_no_place_on_this_machine(made: Make, tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    own = recognizer_of("model=pretrained", f"model.path={made('wav2vec2')}", f"augment.noise_folder={tmp_path}/noise")
    hub_folder.write_card(own, tmp_path, hub_folder.Card("m", "Manifest", {"cer": 0.1}, "the test data"))
    card = (tmp_path / "README.md").read_text()
    assert "noise_folder: noise" in card
    assert "path: checkpoint_wav2vec2" in card
    assert str(tmp_path) not in card
    assert str(made("wav2vec2").parent) not in card
    assert "data:" not in card
    cached = tmp_path / "hub/models--someone--small--one/snapshots" / ("a" * 40)
    own.cfg = own.cfg.with_values({"model.path": str(cached)})
    hub_folder.write_card(own, tmp_path, hub_folder.Card("m", None, {"cer": 0.1}, "the test data"))
    card = (tmp_path / "README.md").read_text()
    assert 'base_model: "someone/small--one"' in card
    assert f"revision: {'a' * 40}" in card


OWN = ["model=wav2vec2", "model.channels=16", "model.d_model=32", "model.n_layers=2", "model.n_heads=2", "model.position_kernel=8"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("wav2vec2", ["model.lora_rank=2"]),
        ("hubert", ["tokenizer=bpe", "tokenizer.vocab_size=14"]),
        ("parakeet", ["tokenizer=pretrained"]),
        pytest.param("bert_adapter", ["tokenizer=pretrained"], marks=pytest.mark.slow),
        pytest.param("mms", ["tokenizer=pretrained", "model.language=deu"], marks=pytest.mark.slow),
        (None, OWN),
        (None, [*OWN, "model.layer_norm=true", "tokenizer=bpe", "tokenizer.vocab_size=14"]),
    ],
)
def test_its_folder_gives_the_same_text_in_the_librarys_pipeline(made: Make, tmp_path: Path, kind: str | None, options: list[str]) -> None:
    from transformers import pipeline

    own = recognizer_of(*([] if kind is None else ["model=pretrained", f"model.path={made(kind)}"]), *options)
    hub_folder.write_processor(own, tmp_path)
    write_folder(own.model, tmp_path, hub_folder.outputs_of(own))
    theirs = pipeline("automatic-speech-recognition", str(tmp_path))
    audios = recordings()
    texts = [own.transcribe(audio).text for audio in audios]
    assert len(set(texts)) > 3
    assert [theirs(audio)["text"].strip() for audio in audios] == texts


@pytest.mark.slow
def test_an_exported_folder_has_a_card_and_begins_another_training(made: Make, tmp_path: Path) -> None:
    options = [*TINY[:1], *TINY[2:], "model=pretrained", f"model.path={made('wavlm')}", "data.train_size=8", "trainer.epochs=1"]
    result = speechtrain.train(compose([*options, "export.on_train_end=[huggingface]"], output_dir=tmp_path / "run"))
    arguments = [f"from={result.folder}", "format=[huggingface,archive]", "utterances=2"]
    for _ in range(2):  # the second takes the place of the first
        assert write_exports(*arguments_of(ExportConfig, arguments)) == []
    folder = tmp_path / "run/exports/huggingface"
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "transformers"\npipeline_tag: "automatic-speech-recognition"')
    assert f"| CER | {100 * result.metrics['test/cer']:.2f} % |" in card
    assert "Trained by speechtrain on Synthetic" in card
    assert "mask_time_prob: 0.05" in card
    audio = recordings()[0]
    wanted = speechtrain.load(str(result.folder)).transcribe(audio).text
    (archive,) = (tmp_path / "run/exports").glob("*.zip")
    for name in (folder, archive):
        assert speechtrain.load(str(name)).transcribe(audio).text == wanted
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    (folder / "README.md").write_text("with a licence")
    assert write_exports(*arguments_of(ExportConfig, arguments)) == []
    assert (folder / "README.md").read_text() == "with a licence"
    with pytest.raises(UserError, match="have no counterpart of WordTokenizer"):
        hub_folder.write_processor(recognizer_of(*OWN, "tokenizer=word"), tmp_path)
    with pytest.raises(NotImplementedError, match="Transformers has no Tdnn; take model=pretrained or model=wav2vec2"):
        write_folder(recognizer_of("model=tdnn").model, tmp_path, [0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in checkpoints.KINDS if kind != "wav2vec2_layer_norm"])
def test_it_gives_its_outputs_in_onnx_runtime(made: Make, tmp_path: Path, kind: str) -> None:
    model = speechtrain.load(str(made(kind))).model.cpu().eval()
    model.head.weight.data *= 0.1  # the checkpoint's is so large that its texts differ
    size, shapes, shorter = (80, [(1, 100), (3, 155)], 30) if kind.startswith(("bert", "parakeet")) else (1, [(1, 5000), (3, 7777)], 700)
    to_onnx(model, tmp_path / "model.onnx", size)
    check_outputs(tmp_path / "model.onnx", model, size, shapes, shorter=shorter)
