"""Processes of the operating system: whether one is alive, calls in fresh ones, Ctrl-C."""
