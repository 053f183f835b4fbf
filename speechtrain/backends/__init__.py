"""base.py (the contract), schedules.py (shared arithmetic), torch/ (Lightning), keras/ (Keras 3).

A backend's framework is imported only when it is chosen.
"""
