"""The results of a run for readers: report.html, the model card, acceptance. No TensorFlow.

pareto_front.py        accuracy against cost, from one supernet
acceptance.py          whether the measured network meets the thresholds of config.evaluate
templates/             report.html, its sections and its style; the model card's Markdown
candidates_section.py  the report's section on candidates
network_section.py     the report's section on the network found
model_card.py          the model card of an exported network, as JSON and Markdown
report.py              the terminal's table and report.html
"""
