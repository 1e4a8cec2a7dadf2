"""Where budgets are kept."""
