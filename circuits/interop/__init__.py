"""Models and formats that others made: one file for each."""
