"""Messages about values of another type name the key that was typed, and what to write in its place."""

from __future__ import annotations

import pytest

from speechtrain import compose
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
    ],
)
def test_the_message_names_what_was_typed_and_an_example_of_it(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(overrides)


def test_trackers_that_are_none_of_them_in_braces_are_none() -> None:
    assert list(compose(["tracking={}"]).tracking) == []
