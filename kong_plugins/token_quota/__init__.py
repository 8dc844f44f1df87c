"""token-quota: the plugin that holds each request against its tenant's budgets and settles it to the token."""
