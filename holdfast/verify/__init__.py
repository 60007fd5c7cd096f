"""`holdfast verify`: proves from what clients recorded that nothing was lost and nothing applied twice."""
