"""Pure functions on arrays: numbers out."""
