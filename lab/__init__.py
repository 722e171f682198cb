"""Experiments on agents, and their analysis: the libraries behind the command lines."""
