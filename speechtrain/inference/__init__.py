"""A trained model in use: found by name, loaded, and given audio."""
