"""One trial in the process that runs it: what its job gets to know, who owns it, what it trains, how it ended."""
