"""Every error a user can meet, each with its exit code. Lowest floor: imports nothing.

An error is part of the interface: it says what is wrong, where, what was got, what was wanted
and what to do, in one line.
"""


class MmplError(Exception):
    """Base of all errors raised on purpose. `str(error)` is the one line shown to the user."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        got: object = None,
        wanted: object = None,
        todo: str = "",
    ) -> None:
        self.what, self.where, self.got, self.wanted, self.todo = what, where, got, wanted, todo
        parts = [f"{where}: {what}" if where else what]
        if got is not None:
            parts.append(f"got {got}")
        if wanted is not None:
            parts.append(f"wanted {wanted}")
        if todo:
            parts.append(todo)
        super().__init__("; ".join(parts))


class ArgumentError(MmplError, ValueError):
    """A value given by the caller or on the command line is wrong."""

    exit_code = 2


class SchedulingError(MmplError):
    """A schedule that cannot be carried out: a mistake of this program, not of its user."""


class InputError(MmplError):
    """A file given as input is refused: image, video, prompt file."""

    exit_code = 3


class CheckpointError(InputError):
    """Weights are missing, damaged, of the wrong kind or shape, or unsafe. The only error a
    checkpoint can cause."""


class OutputError(MmplError):
    """The output or the disk: not writable, exists, full, or not what was promised."""

    exit_code = 4


class RankError(MmplError):
    """Another process of this film is gone; what was finished durably is kept."""

    exit_code = 5


class ResumeError(MmplError):
    """A job folder that cannot be gone on with: it belongs to other settings or weights."""

    exit_code = 6


class NumericError(MmplError):
    """NaN or Inf in a latent."""

    exit_code = 7


class OutOfMemoryError(MmplError):
    """The device or the host ran out of memory."""

    exit_code = 8


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or the system says that there is no memory left."""
    names = [kind.__name__ for kind in type(error).__mro__]
    # On the CPU torch raises a plain RuntimeError, as it does where a file cannot be mapped.
    said = str(error).lower()
    texts = ("can't allocate memory", "cannot allocate memory")
    known = "MemoryError" in names or "OutOfMemoryError" in names
    return known or any(text in said for text in texts)
