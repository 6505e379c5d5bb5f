"""What a GPU makes of it at real sizes: `python -m tests.bench.gpu` (see `__main__.py`)."""
