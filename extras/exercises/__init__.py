"""Two courses to fill in, graded by pytest: `masks.py` (an evening), `model.py` (a weekend)."""
