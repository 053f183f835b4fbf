"""The private names of Ray that are used here, in one place; `tests/unit/sweep/test_ray_internals.py` names Ray when they change."""

from __future__ import annotations


def knows_node_groups() -> bool:
    """Return whether an autoscaler has told the cluster which nodes it may start, which is not known of one that is reached by `ray://`."""
    from ray._private.state import state

    try:
        config = state.get_cluster_config()
    except Exception:  # a client's: then `hydra.launcher.autoscales` says it
        return False
    return config is not None and any(group.max_count != 0 for group in config.node_group_configs)
