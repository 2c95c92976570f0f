"""What a provider charges for tokens, from a file that the user can edit."""

import math
import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from resources.errors import BudgetError, SettingsError

VARIABLE = "EMBEDDING_PRICES"


def prices_file() -> Path:
    """The file named by EMBEDDING_PRICES, by default `prices.yaml` beside this module."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True)
class Price:
    """What a model costs: a run's budget, the cost of a batch and that of a plan come from here."""

    dollars_per_million_tokens: float

    def dollars(self, tokens: int) -> float:
        return tokens * self.dollars_per_million_tokens / 1e6


FREE = Price(0.0)


def price_of(model: str) -> Price | None:
    """The price of a model, or None if the file does not have it.

    Raises:
        SettingsError: the file cannot be read, or is no mapping of models to prices.
    """
    return _prices(prices_file()).get(model)


@lru_cache(maxsize=4)
def _prices(path: Path) -> dict[str, Price]:
    expected = "expected lines such as 'text-embedding-3-small: 0.02' (US dollars a million tokens)"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(
            f"The price table {path} cannot be read ({error}); {expected}."
        ) from error
    good = isinstance(content, dict) and all(
        isinstance(price, int | float)
        and not isinstance(price, bool)
        and math.isfinite(price)
        and price >= 0
        for price in content.values()
    )
    if not good:
        raise SettingsError(f"The price table {path} is wrong: {expected}.")
    return {str(model): Price(float(price)) for model, price in content.items()}


class Budget:
    """Dollars that may be spent; never exceeded, also by several requests at a time."""

    def __init__(self, most: float | None) -> None:
        self._most = math.inf if most is None else most
        self._spent = 0.0
        self._reserved = 0.0
        self._changed = threading.Condition()

    @property
    def spent(self) -> float:
        return self._spent

    def reserve(self, dollars: float) -> None:
        """Sets aside what a request will cost at most; to be settled when it has ended.

        Raises:
            BudgetError: it would exceed the budget.
        """
        with self._changed:
            # Requests in flight cost less than was set aside for them: only they can make room.
            self._changed.wait_for(lambda: self._fits(dollars) or not self._reserved)
            if not self._fits(dollars):
                raise BudgetError(
                    f"{self._spent:.4f} of the {self._most:.4f} dollars of max_dollars are spent, "
                    f"and the next request could cost {dollars:.6f}. What is embedded is kept: "
                    "raise max_dollars, or run again",
                )
            self._reserved += dollars

    def settle(self, reserved: float, spent: float) -> None:
        with self._changed:
            self._reserved = max(0.0, self._reserved - reserved)
            if self._reserved < 1e-12:  # what is left of rounding
                self._reserved = 0.0
            self._spent += spent
            self._changed.notify_all()

    def _fits(self, dollars: float) -> bool:
        return self._spent + self._reserved + dollars <= self._most
