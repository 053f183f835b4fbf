"""What has to do with operating-system processes: who is alive, fresh ones, Ctrl-C."""
