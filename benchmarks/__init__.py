"""cvkit against plain ways of doing the same: `measure`, and two references to measure against.

`bare` is the shortest hand-written loop that does the same mathematics at the same precision and
layout; `classic` is the loop of the usual scripts.
"""
