"""The site of the documentation: `python -m instar.site OUT` in a checkout (`make site`).

Its pages are those of docs/ and, made anew each time, one for each method, problem and public module. Needs
`pip install 'instar[docs]'`.
"""
