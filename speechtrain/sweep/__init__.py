"""The sweeper: search space, study, job side, worker pool, report. Optuna is imported only here."""
