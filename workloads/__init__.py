"""Models to run, and what scores them."""
