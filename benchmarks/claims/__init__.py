"""The paper's claims, and some beyond it, measured at a scale that two cores allow.

    .venv/bin/python -m benchmarks.claims --claims=table3,table4 --config=configs/claims_digits.py
        --workdir=runs/claims_digits --seeds=0,1,2 --export=docs/results/claims/digits

Each claim is measured once a seed; its record, WORKDIR/records/CLAIM/seedN.json, is not made again, and searches and
pools of candidates are shared. An interrupted run resumes. --export writes for each claim DIR/CLAIM.json (what was
measured, for all seeds), CLAIM.md and CLAIM.svg. `--render=DIR` makes the pages and pictures again from the JSON alone.
The page above DIR, docs/results/claims.md, has a line for each claim of all studies beside it.
"""
