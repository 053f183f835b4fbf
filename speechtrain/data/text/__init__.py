"""From transcripts to labels: normalisation, tokenizers, pronunciations."""
