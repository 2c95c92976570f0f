"""What can go wrong, by kind. An error that is none of these is a bug of this project's."""

import errno
from typing import ClassVar, Literal

FailureKind = Literal["unavailable", "out_of_memory", "error"]
"""What `fallback.when` may name."""


class EmbeddingAssetsError(Exception):
    """Base of all errors raised on purpose; each says in a sentence what to do."""


class InvalidInputError(EmbeddingAssetsError, ValueError):
    """A user's mistake: in settings, environment variables, URLs, arguments or files of theirs."""


class NotFoundError(InvalidInputError, LookupError):
    """There is no collection, partition, index or file of the name that was given."""


class MissingPackageError(InvalidInputError, ImportError):
    """What was asked for needs packages that are not installed."""

    def __init__(self, what: str, extra: str) -> None:
        """Names the extra to install.

        Args:
            what: that needs them.
            extra: of this project, which brings them.
        """
        super().__init__(
            f"{what} needs packages that are not installed: pip install 'embedding-assets[{extra}]'"
        )


class EmbeddingError(EmbeddingAssetsError):
    """Texts could not be embedded.

    Attributes:
        kind: None is for the user to put right: no fallback takes over.
        blames_text: whether one of the texts may be the reason; then the others may still succeed.
        proven: a harmless text was embedded while these failed.
        dollars: that were spent in vain.
    """

    kind: ClassVar[FailureKind | None] = "error"
    blames_text: ClassVar[bool] = False
    proven: bool = False
    dollars: float = 0.0


class TextError(EmbeddingError):
    """One of the texts may be what the model or the server cannot take."""

    blames_text = True


class ModelError(EmbeddingError):
    """The model is not there, cannot be loaded, or died."""


class SelfCheckError(ModelError):
    """The model's vectors are not what they should be."""


class SettingsError(EmbeddingError, InvalidInputError):
    """The embedder's settings contradict the model or the server."""

    kind = None


class BudgetError(SettingsError):
    """The run would spend more than it may."""


class EmbedderUnavailableError(EmbeddingError):
    """The server does not answer, or answers nobody for now."""

    kind = "unavailable"


class CredentialsError(EmbedderUnavailableError, InvalidInputError):
    """The key is missing, or the server refuses it."""


class EmbedderOutOfMemoryError(EmbeddingError):
    """The device has no memory for the model."""

    kind = "out_of_memory"


class TextOutOfMemoryError(EmbedderOutOfMemoryError):
    """The device has no memory for these texts, but may have some for others."""

    blames_text = True


def not_permitted(error: BaseException | None) -> str | None:
    """A sentence, if the system refused access to a file: a folder that is read-only, say."""
    if not isinstance(error, OSError) or not error.filename:
        return None
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return None
    return (
        f"Access to {error.filename} is not permitted ({error.strerror}). Give this user the right "
        "to read and to write there, or, if it is an output, another folder: EMBEDDING_DATA_DIR."
    )
