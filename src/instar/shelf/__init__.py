"""The shelf that people browse: the papers behind the library and its methods, found by clock, domain, task and need.

Everything here is read from cards, from the list of papers and from records. Nothing imports torch.
"""
