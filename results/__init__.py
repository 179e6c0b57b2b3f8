"""The store: runs and metrics in a database, raw traces in Parquet."""
