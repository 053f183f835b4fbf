"""What a study has stored, and how it is planned, claimed, read and summed up. Optuna's part of the sweeper."""
