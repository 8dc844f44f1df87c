"""Token budgets and exact bills for LLM tenants behind Kong."""
