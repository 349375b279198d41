"""One torch thread per process: two threads fight where cores are shared, and results stay the same.

Products of bfloat16 without matrix tiles (AMX): some virtual machines announce the tiles and lose their
settings when another process has its turn; the next product is an illegal instruction and ends the process.
"""

import os

# Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")  # a limit: lesser processors take less
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
