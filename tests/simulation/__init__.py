"""Simulates a deployment in one thread: replicas, a store, clients and their faults, in virtual time."""
