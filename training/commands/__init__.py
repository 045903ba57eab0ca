"""Commands that have a file each; the others stand in `training.cli` and `training.cli_data`."""
