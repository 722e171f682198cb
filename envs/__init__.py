"""Environments behind one adapter."""
