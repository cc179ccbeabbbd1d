"""Evaluation: protocols of the field over records, a row for everything that can answer, and reports."""
