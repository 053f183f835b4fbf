"""Sweeps: the search space, the study, the trials, the workers and the reports. Hydra calls `plugin.py`; `sweeper.py` runs a sweep.

A job of any Hydra program that can be swept reports its steps, and is pruned, with two lines:

    from speechtrain.sweep import report
    report(loss, epoch)
"""

from speechtrain.sweep.trial.report import report

__all__ = ["report"]
