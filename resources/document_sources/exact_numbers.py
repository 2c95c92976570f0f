"""Numbers of JSON and YAML that neither 64 bits nor a double hold stay as they are written."""

from decimal import Decimal, InvalidOperation

_SAFE_DIGITS = 18


class ExactNumber(Decimal):
    """A number that metadata keep digit by digit."""


def exact_int(written: str) -> "int | ExactNumber":
    """An integer of JSON.

    Raises:
        ValueError: it has more digits than Python converts.
    """
    number = int(written)
    fits = len(written) <= _SAFE_DIGITS or -(2**63) <= number < 2**64
    return number if fits else ExactNumber(written)


def exact_float(written: str) -> "float | ExactNumber":
    """A number of JSON with a point or an exponent; a float only if it stands for just that number.

    Raises:
        ValueError: its exponent is beyond all bounds.
    """
    number = float(written)
    try:
        exact = ExactNumber(written)
    except InvalidOperation:
        raise ValueError(f"the exponent of {written[:40]} is too large") from None
    return number if Decimal(repr(number)) == exact else exact
