"""From log-probabilities to labels (greedy, beam search with language models), and from labels to their times."""
