"""A wrong config is refused with every problem, its dotted path and what to do; nothing heavy is imported for it."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import thinned
from omegaconf import OmegaConf

from speechtrain import compose
from speechtrain.config import CONF_DIR
from speechtrain.config.comments import summary_of
from speechtrain.config.compose import compose_command, compose_unchecked, find_job_problems
from speechtrain.config.explain import broken_files
from speechtrain.config.node_checks import find_node_problems
from speechtrain.config.schema import SCHEMAS
from speechtrain.config.schemas.commands import COMMANDS, CompareConfig, ServeConfig, TranscribeConfig
from speechtrain.config.schemas.node import Node
from speechtrain.errors import ConfigError


def problems(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    thinned(
        [
            (["model=conformr"], ["model: there is no 'conformr'", "did you mean 'conformer'"]),
            (["experiment=quik"], ["there is no 'quik'", "did you mean 'quick'"]),
            (["tracking=[mlflw]"], ["there is no 'mlflw'", "did you mean 'mlflow'"]),
            (["modle=tdnn"], ["modle: there is no such key", "did you mean 'model'"]),
            (["model.chanels=3"], ["model.chanels: there is no such key", "did you mean 'model.channels'"]),
            (["trainer.early_stopping.patienc=3"], ["did you mean 'trainer.early_stopping.patience'"]),
            (["model=conformer", "model.chanels=3"], ["model.chanels", "n_heads"]),
            (["model.channels=many"], ["model.channels: must be a whole number, received 'many'"]),
            (["model.dropout=[0.1]"], ["model.dropout"]),
            (["model.stem_channels=[8,b]"], ["model.stem_channels[1]: must be a whole number, received 'b'"]),
            (["trainer.deterministic=perhaps"], ["trainer.deterministic: must be true or false"]),
            (["model.channels=-3"], ["model.channels: must be at least 1, received -3"]),
            (["optimizer.lr=0"], ["optimizer.lr: must be more than 0, received 0"]),
            (["+trainer.epoch=3"], ["trainer.epoch: there is no such key", "did you mean 'trainer.epochs'"]),
            (["+report.goes_with={}"], ["report.goes_with: there is no such key"]),
            (["+epochs=3"], ["epochs: there is no such key"]),
            (["task=classification", "data=keywords", "decoder=beam"], ["decoder: is speechtrain.decode.beam", "decodes nothing"]),
            (["experiment=signal_extraction", "language_model=words"], ["language_model: is words, and the task", "has no texts"]),
            (["backend=keras", "trainer.batch_seconds=auto"], ["trainer.batch_seconds: is auto; the Keras backend cannot"]),
            (["backend=keras", "trainer.accelerator=mps"], ["trainer.accelerator: is mps, which the Keras backend does not know"]),
            (["trainer.accelerator=gpus"], ["trainer.accelerator: must be one of auto, cpu", "did you mean 'gpu'"]),
            (["trainer.strategy=dpp"], ["trainer.strategy: is dpp, which Lightning does not know"]),
            (["objective.metric=val/per"], ["objective.metric: there is no metric 'val/per'", "did you mean 'val/"]),
            (["seed=${oc.env:NOT_SET}"], ["seed: \"Environment variable 'NOT_SET' not found\""]),
            (["init_from=" + 300 * "x" + "/y"], ["init_from: no such run or checkpoint"]),
            (["init_from=~nobody/run"], ["init_from: no such run or checkpoint"]),
            (["optimizer.lr=nan"], ["optimizer.lr: must be more than 0, received nan"]),
            (
                ["data=manifest", "data.root=.", "data.split.val=[a,b]", "data.split.test=[b]"],
                ["data.split.test: has speakers that val has"],
            ),
            (["data=folder", "data.root=.", "data.speaker='(?P<speaker>a{99999999999})'"], ["data.speaker: is no regular expression"]),
            (["optimizer.lr=inf"], ["optimizer.lr: must be at most 1e+30, received inf"]),
            (["optimizer.weight_decay=1e400"], ["optimizer.weight_decay: must be at most 1,000,000, received inf"]),
            (["trainer.gradient_clip_val=inf"], ["trainer.gradient_clip_val: must be at most 1,000,000,000, received inf"]),
            (["data.batch_seconds=inf"], ["data.batch_seconds: must be at most 1,000,000,000, received inf"]),
            (["model.channels=100000000000000"], ["model.channels: must be at most 65,536, received 100000000000000"]),
            (["model.channels=inf"], ["model.channels: must be a whole number, received inf"]),
            (["model.channels=" + "9" * 400], ["model.channels: must be at most 65,536, received 999"]),
            (["model.channels=" + "9" * 5000], ["Exceeds the limit"]),
            (["model.dilations=[1,10000000000000]"], ["model.dilations: must be at most 10,000"]),
            (["backend.threads=1000000"], ["backend.threads: must be at least 1 and at most 1024, received 1000000"]),
            (["augment.noise_snr_db=[-inf,3]"], ["augment.noise_snr_db: must be at least -200, received [-inf, 3"]),
            (["task=classification", "task.class_weights={a:[inf]}"], ["task.class_weights: must be at most 1,000,000,000"]),
            (
                ["data=signals", "data.duration=100000", "data.sample_rate=700000"],
                ["data.duration: is 100000 s, more than 10000000 samples"],
            ),
            (["features.hop=1e-9"], ["features.hop: is 1e-09 s", "not a sample at 16000 Hz"]),
            (["data=manifest", f"data.root={'a' * 300}"], ["data.root: no such folder"]),
            (["data=manifest", "data.root=~nobody-of-this-name/a"], ["data.root: no such folder"]),
            (["model.dropout=1"], ["model.dropout: must be at least 0 and less than 1"]),
            (["model.dilations=[1,0]"], ["model.dilations: must be at least 1, received [1, 0]"]),
            (["trainer.precision=17"], ["trainer.precision: must be one of", "32-true"]),
            (["features.normalize=utterence"], ["did you mean 'utterance'"]),
            (["model=conformer", "model.d_model=100", "model.n_heads=3"], ["model.d_model: is 100, not divisible by n_heads=3"]),
            (["model=conformer", "model.subsampling=3"], ["model.subsampling: must be 2, 4 or 8"]),
            (["model.kernel_size=4"], ["model.kernel_size: must be odd"]),
            (["model.stem_channels=[8]"], ["model.stem_time_strides: has 2 entries, stem_channels has 1"]),
            (
                ["data=manifest", f"data.root={__file__}"],
                ["data.root: is a file, and no folder", f"data.root={Path(__file__).parent} data.train=test_problems.py"],
            ),
            (["data=manifest", "data.root=/no/such/folder"], ["data.root: no such folder: /no/such/folder"]),
            (["data=manifest", "data.root=.", "data.train=absent.jsonl"], ["data.train: no such manifest", "absent.jsonl"]),
            (["model._target_=my_pkg.MyEncoder"], ["model._target_: there is no module 'my_pkg'"]),
            (
                ["model._target_=speechtrain.backends.torch.models.Tdn"],
                ["has no 'Tdn'", "did you mean 'speechtrain.backends.torch.models.Tdnn'"],
            ),
            (["model._target_=Tdnn"], ["is not a dotted path"]),
            (["+model.width=3"], ["model.width", "takes no argument 'width'"]),
            (["model=custom"], ["model._target_: has no value"]),
            (["model=custom", "model._target_=speechtrain.backends.torch.models.Mlp"], ["model.hidden_sizes", "needs it"]),
            (
                ["scheduler.warmup_steps=50", "trainer.max_steps=10"],
                ["scheduler.warmup_steps: is 50, longer than the run of trainer.max_steps=10"],
            ),
            (["scheduler.warmup_ratio=1.5"], ["longer than the run"]),
            (["features.f_max=9000"], ["features.f_max: is 9000 Hz, above half of sample_rate (8000 Hz)"]),
            (["features.f_min=9000", "features.f_max=8000"], ["features.f_min"]),
            (["features.hop=0.05"], ["features.hop: is 0.05 s, longer than the window"]),
            (["data.min_words=5", "data.max_words=2"], ["data.min_words: is 5, more than max_words=2"]),
            (["augment.noise_snr_db=[30,5]"], ["augment.noise_snr_db"]),
            (
                ["model=pretrained", "model.path=a/b", "augment=light"],
                ["augment.noise_prob: works on spectra, and features=pretrained has none"],
            ),
            (["augment.recombine_prob=0.5"], ["augment.recombine_prob: needs word times"]),
            (["data=manifest", "data.root=.", "data.split.val=ten"], ["data.split.val: must be a percentage or a list of speakers"]),
            (["optimizer=sgd", "optimizer.momentum=0"], ["optimizer.nesterov: needs a momentum"]),
            (["resume=/no/such/run"], ["resume: no such run or checkpoint"]),
            (["model.channels=[1"], ["'model.channels=[1' cannot be read"]),
            (["seed=-1"], ["seed: must be at least 0"]),
            (["model.stem_channels=3"], ["1 problem", "model.stem_channels: must be a list, received 3"]),
            (["optimizer.lr=null"], ["1 problem", "optimizer.lr: must be a number, received None"]),
            (["data=mix", "+data@data.corpora.a=synthetic", "data.weights.b=1"], ["1 problem", "data.weights.b: there is no such key"]),
            (
                ["trainer.checkpoint.every_n_steps=5", "trainer.checkpoint.save_last=false"],
                ["trainer.checkpoint.every_n_steps: is 5, and the last checkpoint is not kept"],
            ),
            (
                ["tracking.mlflow.log_last=true", "trainer.checkpoint.save_last=false", "data.folds=3"],
                [
                    "2 problems",
                    "tracking.mlflow.log_last: is true, and no last checkpoint",
                    "and a cross-validation (data.folds) goes on from",
                ],
            ),
        ],
        2,
    ),
)
def test_a_mistake_is_named_with_its_path_and_what_to_do(overrides: list[str], said: list[str]) -> None:
    text = problems(*overrides)
    for part in said:
        assert part in text


def test_all_problems_are_reported_at_once() -> None:
    text = problems("model.channels=x", "optimizer.lrr=3", "trainer.epochs=0", "scheduler.warmup_steps=50", "trainer.max_steps=10")
    assert "4 problems in the config" in text
    for path in ("model.channels", "optimizer.lrr", "trainer.epochs", "scheduler.warmup_steps"):
        assert f"  {path}: " in text


@pytest.mark.parametrize(
    "option", thinned(sorted(path.relative_to(CONF_DIR).with_suffix("").as_posix() for path in CONF_DIR.glob("*/*.yaml")), 3)
)
def test_every_option_of_every_group_composes(option: str) -> None:
    group, name = option.split("/")
    if group == "schema":
        return
    if name == "custom":
        assert f"{group}._target_: has no value" in problems(f"{group}={name}")
    elif option == "data/mix":
        assert "data.corpora: is empty" in problems("data=mix")
    elif group == "data" and name not in ("digits", "keywords", "synthetic", "signals", "featurised"):
        assert "data.root: has no value" in problems(f"data={name}")
    elif option == "augment/far_field":
        assert "augment.noise_folder: no such folder" in problems(f"augment={name}")
    elif option == "features/waveform":
        assert "augment.warp: works on spectra, and features=waveform has none" in problems(f"features={name}")
    elif option == "model/pretrained":
        assert "model.path: has no value" in problems(f"model={name}")
    elif option in ("features/pretrained", "tokenizer/pretrained"):
        assert f"{group}.path: is not given, and the model names no checkpoint" in problems(f"{group}={name}")
    elif option == "task/regression":
        assert "set data=signals or hdf5_signals" in problems("task=regression")
    elif option == "tokenizer/label":
        assert "set tokenizer=char or list" in problems("tokenizer=label")
    elif option == "data/featurised":
        assert "data.split_dir: has no value" in problems("data=featurised")
    elif option in ("features/stored", "features/signals"):
        assert "set features=logmel" in problems(f"features={name}")
    elif group == "experiment" and name not in ("quick", "rerun_best", "keywords", "signal_extraction"):
        assert "data.root: has no value" in problems(f"experiment={name}")
    else:
        compose([f"{group}={name}"])


def test_every_option_tells_in_its_first_line_what_it_is() -> None:
    for path in CONF_DIR.glob("*/*.yaml"):
        assert len(summary_of(path)) > 10, path


def test_a_type_follows_the_schema() -> None:
    cfg = compose(["model.dropout=0", "optimizer.betas=[0,0.5]"])
    assert isinstance(cfg.model.dropout, float)
    assert list(cfg.optimizer.betas) == [0.0, 0.5]


def test_keys_of_the_option_that_a_foreign_target_does_not_take_are_left_out_unless_given(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from speechtrain.config.checks import find_problems
    from speechtrain.config.components import drop_unaccepted_defaults

    (tmp_path / "my_pkg.py").write_text("class MyEncoder:\n    def __init__(self, input_size, width=1, dropout=0.0): ...\n")
    given = ["model._target_=my_pkg.MyEncoder", "+model.width=64"]
    from speechtrain.config.composition import compose_groups

    cfg = compose_groups(given)
    dropped = drop_unaccepted_defaults(cfg, given)
    assert OmegaConf.to_container(cfg.model) == {"_target_": "my_pkg.MyEncoder", "width": 64, "dropout": 0.1}
    assert "model.channels" in dropped
    assert find_problems(cfg) == []
    given.append("model.channels=3")
    cfg = compose_groups(given)
    drop_unaccepted_defaults(cfg, given)
    assert "takes no argument 'channels'" in str(find_problems(cfg)[0])


@pytest.mark.cold
def test_the_exit_code_of_a_users_mistake_is_2_and_there_is_no_trace(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = command("model.channels=-1", "optimizer.lr=0")
    assert done.returncode == 2
    assert "2 problems in the config" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr


def test_help_lists_groups_with_what_each_option_is(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = command("--help")
    assert done.returncode == 0
    assert "conformer" in done.stdout
    assert "Conformer (Gulati et al. 2020)" in done.stdout
    assert "schema" not in done.stdout


def test_a_folder_of_ones_own_adds_options(command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "wide.yaml").write_text("defaults: [tdnn, _self_]\nchannels: 256\n")
    done = command("--config-dir", "mine", "model=wide", "--cfg", "job", "--package", "model")
    assert "channels: 256" in done.stdout
    done = command("--config-dir", "mine", "model=wide", "model.chanels=2")
    assert "did you mean 'model.channels'" in done.stderr
    assert "command line" not in done.stderr  # what is typed behind an option is no override
    (tmp_path / "mine" / "model" / "wide.yaml").write_text("channels: [256\n")
    done = command("--config-dir", "mine", "model=wide", "--cfg", "job")
    assert (done.returncode, "mine/model/wide.yaml:2: is no YAML" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: 1\nb: [1\nc: {\n", r"own.yaml:3: is no YAML \(expected ',' or '\]'"),
        (b"a:\n\t- b\n", r"own.yaml:2: is no YAML \(found character '\\t'"),
        (b"a: 1\na: 2\n", r"own.yaml:2: is no YAML \(found duplicate key a\)"),
        (b"a: !!python/object/apply:os.getcwd []\n", r"own.yaml:1: is no YAML \(could not determine a constructor"),
        (b"b: *c\n", r"own.yaml:1: is no YAML \(found undefined alias"),
        (b"a: caf\xe9\n", r"own.yaml: cannot be read .*0xe9"),
        (b"a: \x01\n", r"own.yaml: cannot be read"),
        (b"a: ${b\n", r"own.yaml: cannot be read"),
        (b"- a\n", r"own.yaml: must hold keys with values, received a list"),
        (b"defaults: 7\n", r"own.yaml: 'defaults' must be a list of options, received 7"),
        (b"defaults: [model: 1]\n", r"own.yaml: 'defaults' must be a list of options"),
    ],
)
def test_a_mistake_in_a_file_of_ones_own_is_told_by_file_and_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_bytes(content)
    (tmp_path / "model" / "good.yaml").write_text("defaults: [tdnn, _self_, override /optimizer: null]\nchannels: 256\n")
    (problem,) = broken_files(str(tmp_path))
    assert re.search(said, str(problem)), str(problem)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("chanels: 3", "model.chanels: there is no such key, in 'model/own'\n    -> did you mean 'model.channels'?"),
        ("channels: many", "model.channels: must be a whole number, received 'many', in 'model/own'\n    -> for example model.channels="),
    ],
)
def test_what_the_file_of_an_option_sets_wrongly_is_told_with_the_file_and_the_other_mistakes(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_text(f"defaults: [tdnn, _self_]\n{line}\n")
    told = problems(f"hydra.searchpath=[file://{tmp_path}]", "model=own", "seeed=1")

    assert said in told
    assert "seeed: there is no such key" in told


def test_a_size_chooses_what_the_models_file_has_for_it_and_a_key_given_besides_wins() -> None:
    tiny, large = (compose(["model=conformer", f"model.size={size}"]).model for size in ("tiny", "large"))
    assert (tiny.d_model, tiny.n_layers, large.d_model, large.n_layers) == (96, 4, 512, 17)
    assert compose(["model=conformer", "model.size=large", "model.d_model=64"]).model.d_model == 64
    assert list(compose(["model=quartznet", "model.size=small"]).model.kernel_sizes) == [33, 39, 51, 63, 75]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=conformer", "model.size=smal"], ["model.size: must be one of tiny, small, medium, large", "did you mean 'small'"]),
        (["model=zipformer", "model.widths=[64]"], ["model.widths: has 1 entries, rates has 4"]),
        (["model=zipformer", "backend=keras"], ["backend: does not go with model=zipformer", "backend=torch"]),
        (["model=conformer", "model.left_chunks=2"], ["model.left_chunks: is 2, and there are no chunks"]),
        (["model=quartznet", "model.size=small", "model.kernel_sizes=[3,4,3,3,3]"], ["model.kernel_sizes: must be odd"]),
        (["model=wav2vec2", "features=logmel"], ["features: does not go with model=wav2vec2", "set features=waveform"]),
        (["model=wav2vec2", "augment=light"], ["augment.warp: works on spectra", "augment.tempo", "augment.freq_masks"]),
        (["model=wav2vec2", "model.weights=gone.pth"], ["model.weights: no such file", "gone.pth"]),
        (["model=wav2vec2", "model.d_model=100"], ["model.d_model: is 100, no multiple of 16 and of n_heads=4", "model.d_model=96"]),
    ],
)
def test_sizes_and_new_models_say_what_is_wrong(overrides: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    for words in expected:
        assert words in str(caught.value)


def test_a_model_of_ones_own_needs_no_schema_its_signature_is_checked_with_its_types(tmp_path: Path) -> None:
    (tmp_path / "own_sizes.py").write_text("def make(input_size: int, width: int, rates: list[float], name: str | None = None): ...\n")
    own = ["model=custom", "model._target_=own_sizes.make"]
    text = problems(*own, "+model.width=wide", "+model.rates=[0.5,fast]")
    assert "model.width: must be a whole number, received 'wide'" in text
    assert "model.rates: must be a list, each item a number, received [0.5, 'fast']" in text
    assert compose([*own, "+model.width=8", "+model.rates=[1,0.5]"]).model.width == 8


def test_all_that_only_the_torch_backend_has_is_refused_at_once_before_anything_is_read() -> None:
    asked = ["trainer.ema_decay=0.9", "trainer.average_last=2", "trainer.layer_dropout=0.1", "task.intermediate=0.3", "trainer.devices=2"]
    text = problems("backend=keras", "data=synthetic", *asked)
    assert text.startswith("5 problems")
    for key in asked:
        assert f"{key.partition('=')[0]}: is {key.partition('=')[2]}" in text


def test_a_model_that_only_the_other_backend_has_is_named_with_that_backend() -> None:
    target = "model._target_=speechtrain.backends.keras.models.Zipformer"
    text = problems("backend=keras", "data=synthetic", "model=custom", target)
    assert "model._target_: Zipformer is there for backend=torch only" in text
    assert "set backend=torch" in text


def test_tags_of_runs_to_compare_may_have_any_name() -> None:
    cfg = compose_command(CompareConfig, ["tags.host=here", "tags.data.fingerprint.test=ab12", "top=5"])
    assert (cfg.tags, cfg.top) == ({"host": "here", "data.fingerprint.test": "ab12"}, 5)


def test_every_number_of_every_schema_is_refused_where_it_is_infinite_or_not_a_number() -> None:
    schemas = [each for options in SCHEMAS.values() for each in options.values()] + list(COMMANDS.values())
    numbers = [
        (each, field) for each in schemas for field in dataclasses.fields(each) if str(field.type).split(" ")[0] in ("float", "list[float]")
    ]
    assert len(numbers) > 100
    for schema, field in numbers:
        for value in (math.nan, math.inf, -math.inf):
            node = OmegaConf.structured(schema)
            node[field.name] = [value] if "list" in str(field.type) else value
            found = [problem for problem in find_node_problems(node, "") if problem.path == field.name]
            allowed = schema.__name__ == "Featurised" and field.name == "pad_value" and not math.isnan(value)
            assert bool(found) is not allowed, (schema, field.name, value)


@pytest.mark.parametrize(
    ("schema", "typed", "said"),
    [
        (TranscribeConfig, "window=1e400", "window: must be at most 86,400, received inf"),
        (TranscribeConfig, "raw_rate=999983", "raw_rate: must be at most 768,000"),
        (TranscribeConfig, f"nbest={'9' * 5000}", "Exceeds the limit"),
        (ServeConfig, "max_seconds=nan", "max_seconds: must be more than 0, received nan"),
        (ServeConfig, "max_megabytes=inf", "max_megabytes: must be at most 2,000, received inf"),
    ],
)
def test_numbers_of_commands_are_bounded(schema: type[Node], typed: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose_command(schema, [typed])


@pytest.mark.parametrize(("tokenizer", "metric"), [("char", "cer"), ("bpe", "cer"), ("word", "wer"), ("list", "per"), ("phoneme", "per")])
def test_a_model_is_judged_by_what_its_tokens_are(tokenizer: str, metric: str, tmp_path: Path) -> None:
    (tmp_path / "lexicon").touch()
    lexicon = [f"tokenizer.lexicon={tmp_path / 'lexicon'}"] if tokenizer == "phoneme" else []
    assert compose([f"tokenizer={tokenizer}", *lexicon]).objective.metric == f"val/{metric}"
    assert compose(["tokenizer=char", "task.metric=exact"]).objective.metric == "val/exact"
    assert compose(["task=classification", "data=keywords"]).objective.metric == "val/accuracy"


@pytest.mark.parametrize("data", ["manifest", "kaldi"])
def test_a_metric_of_validation_data_needs_some_and_is_refused_before_data_are_read(data: str, tmp_path: Path) -> None:
    none = [f"data={data}", "data.root=."]
    (tmp_path / "train.jsonl").touch()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "wav.scp").touch()
    (problem,) = find_job_problems(compose_unchecked(none))
    assert (problem.path, problem.message) == ("objective.metric", "is val/cer, but there are no validation utterances")
    stopping = ["objective.metric=train/loss", "trainer.early_stopping.monitor=val/loss"]
    assert [each.path for each in find_job_problems(compose_unchecked([*none, *stopping]))] == ["trainer.early_stopping.monitor"]
    assert not find_job_problems(compose_unchecked([*none, "data.split.val=10"]))
