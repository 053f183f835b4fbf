"""ctc, classification, regression: targets, head, loss, metrics, which way is better."""
