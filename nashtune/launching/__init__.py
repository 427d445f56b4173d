"""Files that start a run elsewhere: a Slurm batch script, a KubeRay RayJob, a SkyPilot task."""
