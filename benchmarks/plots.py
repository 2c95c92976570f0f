"""Plots that Dagster's UI can show: metadata holds them twice, so they are small."""

import base64
import io
from typing import Any

MAX_PNG_BYTES = 100_000


def figure() -> Any:
    """A matplotlib figure; without pyplot, so no state is shared between threads."""
    from matplotlib.figure import Figure

    return Figure(figsize=(10, 4.5), layout="constrained")


def png(plot: Any) -> bytes:
    """The figure as a PNG of less than `MAX_PNG_BYTES`.

    Raises:
        ValueError: it cannot be made so small.
    """
    for dpi in (110, 80, 50):
        buffer = io.BytesIO()
        plot.savefig(buffer, format="png", dpi=dpi)
        if buffer.tell() < MAX_PNG_BYTES:
            return buffer.getvalue()
    raise ValueError(f"the plot takes {buffer.tell()} bytes; at most {MAX_PNG_BYTES} may be shown")


def markdown_image(image: bytes, alternative: str) -> str:
    return f"![{alternative}](data:image/png;base64,{base64.b64encode(image).decode()})"
