"""base.py (the contract), schedules.py (shared arithmetic), torch/ (Lightning).

A backend's framework is imported only when it is chosen.
"""
