"""A fuzzer of every program, `make hammer`, which counts how each case ends.

It makes 2,000 cases out of the options of every command, the files that are read and the calls
in Python: values that nobody should give, damaged files and caches, signals, kills, full disks,
several processes at once. Each ends well or is refused in one line; anything else is listed
with the words that try it again (`--seed S --case KIND:NUMBER`). `--seed` makes other cases. A
new option is tried without being named anywhere; a new command needs a small example in
`bases.py`, a new kind of file a row of `READS` in `files.py`, a new call one in `calls.py`.
"""
