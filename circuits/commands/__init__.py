"""The commands of the command line, a file for each group; heavy modules are imported inside the commands."""
