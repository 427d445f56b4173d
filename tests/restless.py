"""What torchrun is made to run in tests of its launcher: processes that write who and how they are; rank 1 kills itself the
first time, and with ``forever`` all stay."""

import json
import os
import signal
import sys
import time
from pathlib import Path

folder, forever = Path(sys.argv[1]), len(sys.argv) > 2
names = ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", "OMP_NUM_THREADS", "MASTER_ADDR")
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
text = json.dumps({name: os.environ[name] for name in names} | {"pid": os.getpid()})
file = folder / f"{os.environ['RANK']}-{attempt}.json"
file.with_suffix(".partial").write_text(text)
file.with_suffix(".partial").rename(file)
if forever or (attempt == "0" and os.environ["RANK"] == "0"):
    time.sleep(600)
if attempt == "0":
    os.kill(os.getpid(), signal.SIGKILL)
