"""Pages and pictures: the error report of a run, its history, its data, and comparisons of runs."""
