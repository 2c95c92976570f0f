"""Where documents come from. Every record becomes a document or a refusal; none is dropped."""

from resources.document_sources.base import (
    Document,
    DocumentSource,
    FieldNames,
    Refusal,
    RefusalReason,
    SourceFile,
)
from resources.document_sources.files import FileDocumentSource
from resources.document_sources.formats.registry import FileFormat

__all__ = [
    "Document",
    "DocumentSource",
    "FieldNames",
    "FileDocumentSource",
    "FileFormat",
    "Refusal",
    "RefusalReason",
    "SourceFile",
]
