"""Transcripts of the core: what goes in, and what it asks for."""
