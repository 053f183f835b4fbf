"""Pages and pictures that people read: the error report of a run, its history, runs beside each other."""
