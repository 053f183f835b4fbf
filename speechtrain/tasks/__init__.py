"""ctc (more to come): targets, loss, metrics, which way is better."""
