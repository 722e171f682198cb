"""Imported only by the process from which a pool forks its workers.

It starts its own session, so that Ctrl-C and signals to the terminal's process group reach only the pool. The process
ends when the pool ends.
"""

import multiprocessing
import os

if multiprocessing.current_process().name == "MainProcess" and os.getpgrp() != os.getpid():
    os.setsid()
