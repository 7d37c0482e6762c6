"""Where trajectories are sampled when that is not the trained module itself."""
