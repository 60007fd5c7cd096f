"""Programs that stand in for the process that checks a model."""
