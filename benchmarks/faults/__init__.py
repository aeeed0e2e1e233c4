"""Runs that are killed, run out of disk space, or find damaged files; a served model under load.

    .venv/bin/python -m benchmarks.faults [--parts=kills,shrink,disk,damage,load] [--kills=50]
        [--sizes=4] [--damage=200] [--minutes=10]

Small runs on the bundled digits, undisturbed, are the references: one learns gates, the other drops units in steps by
curvature. Then:

- kills: `tfnas run`, killed with SIGKILL, its whole process group, at a moment drawn uniformly from the run's wall
  time, start-up of every stage included; the same command again, three times in ten killed once more. Counted is whose
  posterior, history, candidates, ranking, front and architecture equal the reference's byte for byte and whose
  SavedModel predicts the same bits, with the same files in the folder. What stands before the stage that is killed is
  the reference's, so that it need not be computed each time.
- shrink: `tfnas.shrink` with a working directory, killed in the same way, but not in the first quarter of its time,
  in which TensorFlow is imported; compared are the network, its weights and metrics, all losses of its training, and
  the files that are left.
- disk: every stage on a tmpfs that is too small by various sizes, in a folder that is read-only, and with a full folder
  for temporary files. Expected is exit code 1 and one line that names a file and the reason; the results of stages
  before, and every evaluation made, are still there; and with more space the same command ends as the reference. Needs
  Linux and `unshare`; mounts are in a namespace of their own, which ends with this process.
- damage: every kind of file that a stage reads, truncated, with one bit flipped, emptied, or with the content of
  another file of the run; then the stage. Expected is the reference's result, or one line that names the file.
- load: an exported network behind `tfnas.serving.server`, two clients over REST and two over gRPC, and a fifth whose
  requests are too large, of too many images, or cut. Every answer is compared with the model's in this process.
"""
