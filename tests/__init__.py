"""The tests. A package, so that `tests.harness`-like imports never meet another project's top-level `tests`."""
