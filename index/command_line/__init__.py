"""Shared by the command lines of all packages: errors and exit statuses, time budgets, and one writer at a target."""
