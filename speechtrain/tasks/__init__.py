"""Tasks: CTC, classification and regression, each with its targets, head, loss, metrics and their directions."""
