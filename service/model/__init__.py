"""Step graphs: what they promise (contract), how they run (step graph), where they lie (repository)."""
