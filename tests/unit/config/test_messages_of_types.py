"""Messages about values of another type name the key that was typed, and what to write in its place."""

from __future__ import annotations

import re

import pytest
from hydra.errors import ConfigCompositionException

from speechtrain import compose
from speechtrain.config.composition import REFUSED
from speechtrain.config.composition import compose_groups as compose_unexplained
from speechtrain.config.explain import explain
from speechtrain.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["decoder=beam", "decoder.hot_words=x"],
            r"decoder\.hot_words: must be a list, received 'x'\n    -> for example decoder\.hot_words=\[x\]",
        ),
        (
            ["data.limit_utterances.train="],
            r"data\.limit_utterances\.train: there is no such key: data\.limit_utterances is a whole number",
        ),
        (["tracking.mlflow=3"], r"tracking\.mlflow: must be a tracker with its keys, received 3\n    -> .*tracking=\[\]"),
        (["+tracking.mine=x"], r"tracking\.mine: must be a tracker with its keys, received x"),
        (["tracking.mlflow=[1]"], r"tracking\.mlflow: has keys of its own, received \[1\]\n    -> .*tracking\.mlflow\.tracking_uri"),
        (["tracking=null"], r"tracking: must be an option of the group, received None\n    -> there is: mlflow, tensorboard, wandb"),
        (["augment=3"], r"augment: must be an option of the group, received 3\n    -> there is: .*specaugment"),
        (["callbacks={a: 1}"], r"callbacks: must be a list, received {'a': 1}\n    -> for example callbacks=\[\]"),
        (["choose={}"], r"choose: must be a list, received {}"),
        (["decoder=beam", "decoder.hot_words={}"], r"decoder\.hot_words: must be a list, received {}"),
        (["augment.noise_snr_db={}"], r"augment\.noise_snr_db: must be a list, received {}\n    -> for example augment\.noise_snr_db=\[5"),
        (["trainer.checkpoint=3"], r"trainer\.checkpoint: has keys of its own, received 3\n    -> .*trainer\.checkpoint\.save_top_k"),
        (["data=mix", "data.weights=3"], r"data\.weights: has keys of its own, received 3\n    -> .*'data\.weights={name: value}'"),
        (
            ["data=[digits,synthetic]"],
            r"data: takes one option, received .*\n    -> give data=digits, or -m data=digits,synthetic to try each",
        ),
        (["~augment.noise_snr_db"], r"augment\.noise_snr_db: cannot be taken out\n    -> for example augment\.noise_snr_db=\[5"),
        (["report=[]"], r"report: has keys of its own, received \[\]\n    -> .*report\.enabled"),
    ],
)
def test_the_message_names_what_was_typed_and_an_example_of_it(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(overrides)


def test_settings_of_a_sweep_are_named_too() -> None:
    typed = ["hydra.sweeper.stop_when=3"]
    with pytest.raises(REFUSED) as caught:
        compose_unexplained(typed)
    told = str(explain(typed, caught.value, sweep=True))
    assert re.search(r"hydra\.sweeper\.stop_when: has keys of its own, received 3\n    -> .*hydra\.sweeper\.stop_when\.", told)


@pytest.mark.parametrize("innocent", ["choose=a,b", "callbacks=${mine}", "~callbacks"])
def test_an_override_that_may_well_give_a_list_is_not_blamed_for_another(innocent: str) -> None:
    told = str(explain([innocent, "trainer.checkpoint=3"], ConfigCompositionException("cannot be told"), sweep=True))
    assert "trainer.checkpoint: has keys of its own, received 3" in told
    assert "callbacks" not in told
    assert "choose" not in told


def test_trackers_that_are_none_of_them_in_braces_are_none() -> None:
    assert list(compose(["tracking={}"]).tracking) == []
