"""The parts of pruning: its settings, gate training, the judge of what will do, and dropping until nothing can go."""
