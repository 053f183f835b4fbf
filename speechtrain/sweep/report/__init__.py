"""What people see of a sweep: console, MLflow run, page."""
