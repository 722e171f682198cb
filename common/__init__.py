"""Small records and readers that every package may use: spaces, steps, specs of methods, ranges of numbers."""
