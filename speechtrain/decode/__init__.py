"""Posteriors to labels: greedy (prefix beam search and forced alignment to come)."""
