"""billing-events: the plugin that writes a request's billing event, also when token-quota's server died meanwhile."""
