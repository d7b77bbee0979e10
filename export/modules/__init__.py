"""SANA-Video as plain modules, written for export."""
