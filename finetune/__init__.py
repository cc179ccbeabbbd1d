"""Finetune teaches: records → checkpoint → numbers."""
