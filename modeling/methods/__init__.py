"""The methods: one module each, with its model and its artifact files."""
