"""The MLflow tracker: a spool, a writer process, a reader."""
