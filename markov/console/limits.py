"""The least and the greatest number that a setting of a study may be.

Above what anybody needs there is no work that could end, only a machine that runs full. What fits
into the memory of this machine is less, as a rule: see `markov.running.memory`.
"""

from __future__ import annotations

STATES = (2, 4096)
SET_SIZE = (1, STATES[1])
LENGTH = (2, 100_000)
COUNT = (2, 10**8)
SCORED = (1, LENGTH[1])
TOKENS = (1, 10**10)
STEPS = (1, 10**6)
EPOCHS = (1, 10**5)
BATCH = (1, 10**6)
EXAMPLES = (0, COUNT[1])
CONTEXT = (1, LENGTH[1])
WIDTH = (1, 2**16)
MLP_WIDTH = (1, 2**18)
DEPTH = (1, 1000)
LOGISTIC = (1, 10**6)  # sizes, counts and steps of a logistic world
RUNS = (1, 100_000)
