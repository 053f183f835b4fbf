"""One trial inside its job: claim, report, prune, record the end."""
