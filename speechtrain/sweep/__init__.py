"""The sweeper: search space, study, the job's side of a trial, workers, report. `plugin.py` is where Hydra enters, `sweeper.py` drives."""
