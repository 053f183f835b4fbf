"""Shows and records a sweep: lines in the terminal, a run in the trackers, a page."""
