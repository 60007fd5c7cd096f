"""The client: what `holdfast` itself gives, and what that is made of."""
