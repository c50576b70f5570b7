"""What lets a new version stand where an old one stood: heads that compare a new encoder's vectors with stored ones, and adapters
of a new language model that answer as the old one did where it was right.
"""
