"""What comes from others: are the pinned packages known to be unsafe, and which are the oldest?

`python -m tests.supply.audit` compares `constraints.txt` with `advisories.csv`, a list that is kept
here, since no service is asked. `python -m tests.supply.oldest` writes the oldest versions that
`pyproject.toml` allows, as requirements.
"""
