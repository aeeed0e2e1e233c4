"""The working directory of a run: what each stage ran with, what it left, and who works there.

provenance.py   versions, code and machine of a run
holding.py      one process at a time works in a folder
workdir.py      the table of stages, their keys and files, and the manifest
checkpoints.py  what a stopped search or retrain resumes from
"""
