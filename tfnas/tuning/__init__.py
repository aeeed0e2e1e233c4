"""Many searches with KerasTuner.

trials.py    one search and its sample in a folder of their own, and the best network within the budget
overview.py  the table and the picture of all trials
tuner.py     `tfnas tune`: searches with other values of chosen settings, and the best of them
"""
