"""Sweeps: the search space, the study, the trials, the workers and the report. Hydra calls `plugin.py`; `sweeper.py` runs a sweep."""
