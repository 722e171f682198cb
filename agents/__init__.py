"""Agents that learn, and what they are made of."""
