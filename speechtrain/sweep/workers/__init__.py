"""Where the jobs of a sweep run: in this process, in a pool of worker processes, under a launcher of Hydra's, over ssh."""
