"""One file through all rules."""

from __future__ import annotations

from collections.abc import Mapping

from kong_plugins.adapters.deck_check import rules_of_engines, rules_of_files, rules_of_ways
from kong_plugins.adapters.deck_check.entities import CheckConfig, read_deck
from kong_plugins.adapters.deck_check.findings import DECK_RULES, WAY_RULES, Finding, Problem, Severity
from kong_plugins.adapters.deck_check.source import NotReadable, read_source
from kong_plugins.adapters.deck_check.ways import ways

# Found while a file is read; the others are functions in these modules.
READING = {
    "not-readable": "The file is YAML with a mapping at its top.",
    "format-version": "_format_version is one that decK and Kong know.",
    "unknown-field": "A field that nobody reads is most often a misspelt one.",
    "field": "Values are of the kind that Kong's schemas ask for.",
    "reference": "What a route, a row or a credential names is in the file.",
    "plugin-config": "The configuration of a plugin of ours is one that it would start with.",
    "price-missing": "A budget that counts cost has a price for every model it is for.",
}
RULE_MODULES = (rules_of_engines, rules_of_files, rules_of_ways)


def rules() -> dict[str, str]:
    """Every rule's name, with its reason."""
    of_files, of_ways = ({rule.name: rule.why for rule in rules} for rules in (DECK_RULES, WAY_RULES))
    return READING | of_files | of_ways


def check_text(text: str, file: str, known: Mapping[str, CheckConfig], env: Mapping[str, str]) -> list[Finding]:
    """What is wrong with a decK file's text, by line. ``known``: how the configurations of plugins are checked."""
    try:
        source = read_source(text, env)
    except NotReadable as error:
        return [Finding("not-readable", Severity.ERROR, file, error.line, str(error))]
    deck = read_deck(source, known)
    found: list[tuple[str, Severity, Problem]] = [(rule, Severity.ERROR, problem) for rule, problem in deck.problems]
    for deck_rule in DECK_RULES:
        found += [(deck_rule.name, deck_rule.severity, problem) for problem in deck_rule.check(deck)]
    for way in ways(deck):
        for way_rule in WAY_RULES:
            found += [(way_rule.name, way_rule.severity, problem) for problem in way_rule.check(way)]
    findings = {
        # One place that breaks a rule on several ways is told once.
        (rule, problem.path): Finding(rule, severity, file, source.line(problem.path), problem.message)
        for rule, severity, problem in reversed(found)
    }
    return sorted(findings.values(), key=lambda each: (each.line, each.rule, each.message))
