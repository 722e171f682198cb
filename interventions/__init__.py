"""What is done to agents so that they keep learning."""
