"""The drawing of a circuit: what stands where, lines and marks, names, frame."""
