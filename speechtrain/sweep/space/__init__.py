"""What a sweep searches, how its overrides are read and written, and how a space is checked before the first trial."""
