"""Where documents come from. Every record becomes a document or a refusal; none is dropped."""

from resources.document_sources.builder import Document, FieldNames, Refusal, RefusalReason
from resources.document_sources.files import DocumentSource, FileDocumentSource
from resources.document_sources.formats.registry import FileFormat
from resources.document_sources.listing import SourceFile

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
