"""Tools for developers of this project: benchmarks, kill tests, the embedded example data."""
