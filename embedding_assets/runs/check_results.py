"""What the results of all checks have in common."""

EXAMPLES = 5
"""How many examples a result names at most."""
