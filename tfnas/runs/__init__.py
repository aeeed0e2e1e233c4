"""The working directory of a run: what each stage ran with, what it left, and who works there.

provenance.py   versions, code and machine of a run
holding.py      one process at a time works in a folder
stage_table.py  what each stage reads and writes: settings, files and their names
manifest.py     the record of what each stage ran with and what it left
sampled.py      records that search and sample leave: epochs, candidates, ranking, front
measured.py     records that retrain, evaluate and export leave: results, verdict, exported files
workdir.py      keys of stages, atomic writing, and the manifest
checkpoints.py  what a stopped search or retrain resumes from
"""
