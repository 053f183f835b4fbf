from __future__ import annotations

import pytest

from speechtrain.inference.evaluation import _is_own_data


@pytest.mark.parametrize(
    ("overrides", "is_own"),
    [
        ([], True),
        (["data.normalize=[lowercase]", "backend.threads=1"], True),
        (["+data.normalize=[lowercase]"], True),
        (["data.root=/corpora/data.normalized"], False),
        (["data=kaldi", "data.normalize=[lowercase]"], False),
        (["data.normalized=1"], False),
    ],
)
def test_a_model_is_measured_on_its_own_data_unless_a_key_of_them_is_changed(overrides: list[str], is_own: bool) -> None:
    assert _is_own_data(overrides) is is_own
