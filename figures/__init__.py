"""The paper's figures and this project's own, one module each.

In each module `data(...)` computes a frame and `plot(frame)` draws it.
"""
