"""Tests of the repository: its layers, documents, diagrams and service files."""
