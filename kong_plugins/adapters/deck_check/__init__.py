"""Checks of decK files that need no Kong: fields, and what fits together across plugins, routes and budgets."""

from kong_plugins.adapters.deck_check.checking import check_text, rules
from kong_plugins.adapters.deck_check.entities import CheckConfig, Checked
from kong_plugins.adapters.deck_check.findings import Finding, Severity

__all__ = ["CheckConfig", "Checked", "Finding", "Severity", "check_text", "rules"]
