"""Private names of Ray that the sweeper uses: a test fails with Ray's name when one of them changes."""

from __future__ import annotations

import pytest

ray = pytest.importorskip("ray", reason="needs ray: pip install 'speechtrain[ray]'")


def test_ray_says_what_an_autoscaler_may_start():
    try:
        from ray._private.state import state
        from ray.core.generated.autoscaler_pb2 import ClusterConfig

        assert callable(state.get_cluster_config)
        assert {"max_count"} <= set(ClusterConfig.DESCRIPTOR.fields_by_name["node_group_configs"].message_type.fields_by_name)
    except (ImportError, AttributeError, KeyError, AssertionError) as error:
        pytest.fail(f"Ray {ray.__version__} changed get_cluster_config, which speechtrain/sweep/workers/internals.py uses: {error!r}")
