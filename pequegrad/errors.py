"""Every error that pequegrad raises on purpose, by whose fault it is: the user's, the machine's, or ours.

Invariant: each message says where (when a line of user code is known), what was expected, what came, and what to do.
"""

from __future__ import annotations

from typing import ClassVar

from .locations import NOWHERE, Location, user_location


class PequegradError(Exception):
    """Base of all errors that pequegrad raises on purpose."""

    names_line: ClassVar[bool] = False
    """Whether the message starts with the line of user code that was running when the error was made."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.location: Location | None = user_location() if self.names_line else None

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.location in (None, NOWHERE) else f"{self.location}: {message}"


class ShapeError(PequegradError, ValueError):
    """Shapes that do not fit together. The user's to mend."""

    names_line = True


class DTypeError(PequegradError, TypeError):
    """A dtype that an operation does not take, or data that is no number. The user's to mend."""

    names_line = True


class DeviceError(PequegradError, RuntimeError):
    """Tensors on different devices, or a device that this machine lacks."""

    names_line = True


class IndexOutOfRange(PequegradError, IndexError):
    """An index outside the dimension that it addresses. The user's to mend."""

    names_line = True


class AutogradError(PequegradError, RuntimeError):
    """A gradient that is missing, was freed, or would be wrong."""

    names_line = True


class NotANumberError(PequegradError, ArithmeticError):
    """A result with NaN, found because ``config.debug_nans`` is on. The user's to mend."""

    names_line = True


class StateDictError(PequegradError, RuntimeError):
    """A state_dict that does not fit the module or optimizer it is loaded into. The user's to mend."""


class TraceError(PequegradError, RuntimeError):
    """A traced function does something that a compiled step could not repeat. The user's to mend."""

    @classmethod
    def kept(cls, keeper: str, where: Location | None, update: str) -> TraceError:
        """Return the error for a tensor of a trace that ``keeper`` would keep; ``update``: what changes a state in place."""
        return cls(
            f"{f'{where}: ' if where else ''}this tensor exists only in the trace of a compiled function, and is kept in "
            f"{keeper}, where later calls would not renew it. Return it instead; or, for state, make a tensor before and update "
            f"it in place: {update}."
        )


class NotCompilable(PequegradError):
    """An op, dtype or shape that a target lacks: the compiler falls back to eager and quotes the reason.

    Also used as a value: an op class whose ``lowering`` is ``NotCompilable("reason")`` states that it has none.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RecompileLimit(TraceError):
    """A compiled function was asked for more signatures than its limit. The user's to mend."""


class ToolchainError(PequegradError, RuntimeError):
    """No compiler, or a compiler that failed. The machine's."""


class CacheError(PequegradError, RuntimeError):
    """A cache folder or entry that cannot be used or trusted. The machine's."""


class ArtifactError(CacheError):
    """A saved step that is damaged, foreign, or made for another machine, or one that cannot be saved. The machine's."""


class SignatureError(PequegradError, TypeError):
    """Arguments that a loaded step was not built for. The user's to mend."""

    names_line = True


class DataError(PequegradError, OSError):
    """A data file that is missing, truncated, or not what its name says. The user's to mend."""


class CompilerBug(PequegradError, AssertionError):
    """An invariant of pequegrad itself is broken. Ours: please report it with the text of the message."""


class PequegradWarning(UserWarning):
    """Something that pequegrad could work around, said once."""
