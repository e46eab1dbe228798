"""How much memory and time a run will take, before anything is loaded. Begin with `plan.py`."""
