"""What `parts.py` measures, field by field."""
