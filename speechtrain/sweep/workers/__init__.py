"""Where jobs run: in this process, in a pool, through a launcher, over ssh."""
