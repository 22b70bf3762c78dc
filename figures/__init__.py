"""The paper's figures and this project's own, one module each: `data(...)` computes a frame,
`plot(frame)` draws it.
"""
