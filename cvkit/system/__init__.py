"""The machine: processes, devices, random numbers, files, and words on the screen."""
