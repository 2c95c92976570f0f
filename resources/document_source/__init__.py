"""Where documents come from. Every record becomes a document or a refusal; none is dropped."""

from resources.document_source.documents import Document, FieldNames, Refusal, RefusalReason
from resources.document_source.files import SourceFile
from resources.document_source.formats import FileFormat
from resources.document_source.source import DocumentSource, FileDocumentSource

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
