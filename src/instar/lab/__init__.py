"""Studies of what a transformer computes."""
