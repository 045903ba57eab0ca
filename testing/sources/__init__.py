"""Files from elsewhere, made for tests: data sets and backbones."""
