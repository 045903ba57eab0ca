"""Who may write where."""
