"""Where a run is written down: mlflow.py (more listeners to come)."""
