"""What errors of torch and OpenVINO are to the caller, also to that in another process."""

from collections.abc import Mapping

from resources import errors
from resources.errors import EmbedderOutOfMemoryError, EmbeddingError, TextOutOfMemoryError

_SIGNS_OF_FULL_MEMORY = (
    "out of memory",
    "cublas_status_alloc_failed",
    "can't allocate memory",
    "bad_alloc",
    "bad allocation",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory is full: not all backends use a class of their own for it."""
    said = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(sign in said for sign in _SIGNS_OF_FULL_MEMORY)
    )


def failure(error: Exception, what: str, otherwise: type[EmbeddingError]) -> EmbeddingError:
    """A library's error in this project's terms.

    Args:
        error: the library's.
        what: failed, as the sentence begins.
        otherwise: its kind, unless memory ran out.
    """
    kind = otherwise
    if out_of_memory(error):
        kind = TextOutOfMemoryError if otherwise.blames_text else EmbedderOutOfMemoryError
    return kind(f"{what}: {error}")


def to_message(error: Exception, otherwise: type[EmbeddingError]) -> dict[str, str]:
    """An error for another process; see `failure` for `otherwise`."""
    if not isinstance(error, EmbeddingError):
        error = failure(error, type(error).__name__, otherwise)
    return {"type": type(error).__name__, "message": str(error)}


def from_message(message: Mapping[str, str], whose: str = "") -> EmbeddingError:
    """The error of another process; its sentence begins with `whose`."""
    return getattr(errors, message["type"])(whose + message["message"])
