"""Bad input, reported in one line that names the field, the value and what is allowed."""

from __future__ import annotations


class InvalidInput(ValueError):
    """A setting or a file that cannot be used: the field, its value, and what is allowed instead."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field} = {value!r} is not allowed: {allowed}")

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[str, object, str]]:
        # An exception raised in a worker process is rebuilt from its arguments, not from its message.
        return (type(self), (self.field, self.value, self.allowed))


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise `InvalidInput(field, value, allowed)` unless `condition` holds."""
    if not condition:
        raise InvalidInput(field, value, allowed)
