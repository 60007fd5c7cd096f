"""The processes of `holdfast serve`: the host, its workers, HTTP, signals."""
