"""Code for one ecosystem each. A door imports its package when it is opened, never before."""
