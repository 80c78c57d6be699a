"""Using what was trained: predicting files, and leaving Python."""
