"""What a sweep searches: the space, its overrides, and the check of it before the first trial."""
