"""The command line around a run: words in, one job done, exit codes out."""
