"""Run folders: what training writes and the rest reads."""
