"""What is refused: the details by which one entry speaks of another."""

DUPLICATE_DETAIL = "another record has this id: "
"""Begins the detail of a refused duplicate; the winner's file, " line " and its line follow."""


def duplicate_winner(detail: str) -> str:
    """The file of the record for which a duplicate was refused."""
    return detail.removeprefix(DUPLICATE_DETAIL).rpartition(" line ")[0]
