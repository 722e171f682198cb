"""Small modules that every package may use: spaces, steps, specs of methods, ranges of numbers, files, memory."""
