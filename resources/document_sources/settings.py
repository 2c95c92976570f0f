"""What can be set about documents in files, in a collection's YAML and in code."""

from typing import Any

from pydantic import BaseModel, ByteSize, Field, TypeAdapter, ValidationError, field_validator

from resources.document_sources.base import FieldNames
from resources.document_sources.dated_paths import check_source_path
from resources.document_sources.formats.encodings import check_encoding
from resources.document_sources.formats.registry import BY_ENDING, FileFormat


class FileSourceSettings(BaseModel):
    """Which files are read, and how their records name the parts of a document."""

    path: str = Field(
        description=(
            "File, folder (with all its subfolders), glob such as `archive/**/*.jsonl.gz`, or any "
            "fsspec URL such as `s3://bucket/archive`, with that file system's package installed; "
            "`{{ env.NAME }}` is filled in. %Y, %m, %d and %H stand for the time of a file's "
            "documents, as in `archive/%Y/%m/*.parquet`: a run then reads only the files of its "
            "own partitions, and documents of another time are refused. Names that begin with a "
            "dot are ignored, as in a shell, and those that begin with _ if they have no ending or "
            "are Parquet, as Spark does. A sign that means itself stands in brackets, as "
            "`100[%]done`, unless such a folder is there."
        ),
    )
    format: FileFormat | None = Field(
        default=None,
        description=(
            f"Format of all files: {', '.join(each.value for each in FileFormat)}. Empty: told by "
            f"each file's ending ({' '.join(BY_ENDING)}; all but Parquet also with .gz)."
        ),
    )
    encoding: str | None = Field(
        default=None,
        description=(
            "Encoding of all files but Parquet, such as cp1252, shift_jis or utf-16-le. Empty: "
            "UTF-16 and UTF-32 where a file begins like it, else UTF-8."
        ),
    )
    fields: FieldNames = Field(
        default_factory=FieldNames,
        description="Names of the record fields that hold id, title, text and timestamp.",
    )
    max_document_bytes: int = Field(
        default=10_000_000,
        gt=0,
        description=(
            "Largest document in UTF-8, as 10MB or a number of bytes; a larger one is refused. "
            "A line of JSONL or a "
            "row of CSV may have 64 KiB more."
        ),
    )

    @field_validator("path")
    @classmethod
    def _can_be(cls, path: str) -> str:
        if "{{" not in path:  # a template, which is filled in later
            check_source_path(path)
        return path

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, given: str | None) -> str | None:
        return None if given is None else check_encoding(given)

    @field_validator("max_document_bytes", mode="before")
    @classmethod
    def _bytes(cls, given: Any) -> Any:
        # Not the field's type: Dagster's configuration does not know sizes.
        try:
            return int(TypeAdapter(ByteSize).validate_python(given))
        except ValidationError:
            raise ValueError(f"a size looks like 500KB or 10MB; got {given!r}") from None
