"""The client of Holdfast, the streaming inference service for recurrent networks."""
