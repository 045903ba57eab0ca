"""Lists of a teacher for distillation: their export from an artifact, and their format."""
