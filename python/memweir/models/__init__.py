"""Models on loan: loaded once, lent under leases, given back within budgets, and verified gone."""
