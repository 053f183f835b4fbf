"""The command line around a run: what is typed, the job that is done, and the exit code it ends with."""
