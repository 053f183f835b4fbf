"""One file a source of recordings; each gives a `Corpus`."""
