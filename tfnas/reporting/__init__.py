"""What a run found, for people: report.html, the model card, acceptance. No TensorFlow.

pareto_front.py        accuracy against cost, from one super-network
results.py             the results of retrain and export: schemas, and which row is which
acceptance.py          whether the measured network meets the thresholds of config.evaluate
candidates_section.py  the report's section on candidates
model_card.py          the model card of an exported network, as JSON and Markdown
report.py              the terminal's table and report.html
"""
