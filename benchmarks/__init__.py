"""pay88-adapters side by side with what a user would pick instead: ``python -m benchmarks``. See docs/benchmarks.md."""
