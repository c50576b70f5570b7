"""Optimiser state in a file, a memory budget for what is resident, and a schedule that hides transfers behind updates."""
