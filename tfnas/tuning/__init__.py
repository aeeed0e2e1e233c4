"""Many searches with KerasTuner.

tuner.py  `tfnas tune`: searches with other values of chosen settings, and the best of them
"""
