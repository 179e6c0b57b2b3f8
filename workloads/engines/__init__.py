"""How a model runs on a device: one file per engine."""
