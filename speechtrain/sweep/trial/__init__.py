"""One trial in the process that runs it: what its job knows of it, who owns it, what it trains, how it ended."""
