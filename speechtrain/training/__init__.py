"""The steps of one training run."""
