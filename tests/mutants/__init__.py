"""Mutation testing, `make mutants`: do the tests notice if the code is wrong?

mutmut changes every function of the modules of `MODULES` in one small way at a time: another sign,
another bound, an argument left out. A change that some test notices is killed. What survives is a
hole in the tests, or is explained: by a rule of `judging.py` that holds for a kind of change, or
by a row of `explained.csv`, which says why no test could or should notice. Rows name the function
and its changed lines as Python's `ast` writes them, so that no formatter and no number matters.

To judge a module, only the tests of `MODULES` run, as fast as they are: none that starts
processes or draws.
"""
