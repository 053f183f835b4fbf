"""One trial in the process that runs it: what its job is told, who owns it, what it trains, how it ended."""
